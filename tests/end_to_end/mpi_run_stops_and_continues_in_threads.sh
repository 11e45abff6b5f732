#!/usr/bin/env bash
# SIGUSR1 to any rank of an mpirun saves and ends with 75; threads continue the run to the bits of one that was never stopped.
. tests/end_to_end/common.bash
needs_mpi

options=(--set train.steps=120 --set ranks=2)
begin "${launch[@]}" 2 "$MOP" train examples/tiny.yaml --run "$here/stopped" "${options[@]}"
wait_for 10 "$here/stopped"
process_of 1
kill -s USR1 "$process" # one rank is enough; not every mpirun passes a signal on
ended
[[ $code == 75 ]] || wrong "SIGUSR1 ended it with $code: $(cat "$here/err")"
grep -q "^stopped: after step" "$here/out" || wrong "it does not say that it stopped: $(cat "$here/out")"
tiny "$here/stopped" "${options[@]}" >/dev/null
tiny "$here/whole" "${options[@]}" >/dev/null
same_bits "$here/whole" "$here/stopped"
