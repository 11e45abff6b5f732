#!/usr/bin/env bash
# A rank of an mpirun that is killed, the first or another, ends the job within 5 s, with a line that names it; so does one that fails,
# with its own line and exit code. The limit here is twice that: mpirun itself takes its time where other programs hold the cores.
. tests/end_to_end/common.bash
needs_mpi

for rank in 0 2; do
    begin "${launch[@]}" 3 "$MOP" train examples/tiny.yaml --run "$here/run$rank" --set train.steps=100000
    wait_for 3 "$here/run$rank"
    process_of $rank
    start=$SECONDS
    kill -9 "$process"
    ended
    [[ $code != 0 ]] || wrong "the job ended as if nothing had happened"
    ((SECONDS - start < 10)) || wrong "it took $((SECONDS - start)) s"
    grep -Eq "rank $rank .*(signal 9|Killed)" "$here/err" || wrong "no line names rank $rank: $(cat "$here/err")"
done

mkdir "$here/record.1" # where rank 1 would write its routing
start=$SECONDS
code_of "${launch[@]}" 3 "$MOP" train examples/tiny.yaml --run "$here/failed" --set sim.record="$here/record"
[[ $code == 3 && $(grep -c "^mop: error\[3\]: .*routing record cannot be opened.*record.1.*(rank 1)" "$here/err") == 1 ]] || wrong "rank 1 failed: exit $code, $(cat "$here/err")"
[[ $(grep -c "^mop: error" "$here/err") == 1 ]] || wrong "others speak too: $(cat "$here/err")"
((SECONDS - start < 10)) || wrong "it took $((SECONDS - start)) s"
absent "$here/failed"
