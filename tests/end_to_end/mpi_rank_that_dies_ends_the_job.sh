#!/usr/bin/env bash
# Killing one rank of an mpirun, the first or another, ends the job within 5 s, with a line that names it.
. tests/end_to_end/common.bash
needs_mpi

for rank in 0 2; do
    begin "${launch[@]}" 3 "$MOP" train examples/tiny.yaml --run "$here/run$rank" --set train.steps=100000
    wait_for 3 "$here/run$rank"
    victim=
    for process in $(pgrep -P "$job"); do
        if tr '\0' '\n' <"/proc/$process/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$rank"; then victim=$process; fi
    done
    [[ -n $victim ]] || wrong "there is no process of rank $rank below mpirun"
    start=$SECONDS
    kill -9 "$victim"
    ended
    [[ $code != 0 ]] || wrong "the job ended as if nothing had happened"
    ((SECONDS - start < 5)) || wrong "it took $((SECONDS - start)) s"
    grep -Eq "rank $rank .*(signal 9|Killed)" "$here/err" || wrong "no line names rank $rank: $(cat "$here/err")"
done
