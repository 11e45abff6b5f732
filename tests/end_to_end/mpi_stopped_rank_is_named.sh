#!/usr/bin/env bash
# A rank of an mpirun that is stopped, whichever of how many, ends the job with exit 6 within the timeout and 5 s: in one line that
# names it, below a table of the last collectives of every rank. No process is left.
. tests/end_to_end/common.bash
needs_mpi

for case in "2 0" "2 1" "3 1" "4 0" "4 3"; do
    read -r ranks rank <<<"$case"
    begin "${launch[@]}" "$ranks" "$MOP" train examples/tiny.yaml --run "$here/run$ranks$rank" \
        --set train.steps=100000 --set comm.timeout=2
    wait_for 3 "$here/run$ranks$rank"
    process_of "$rank"
    start=$SECONDS
    kill -STOP "$process"
    ended
    stopped_rank_was_named "$rank" 2
    left=$(pgrep -f -- "--run $here" || true)
    [[ -z $left ]] || wrong "processes are left: $left"
done
