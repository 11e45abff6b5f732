#!/usr/bin/env bash
# Collectives between processes equal the same definitions as between threads: tests/test_comm.c, whose ranks are those of an mpirun.
. tests/end_to_end/common.bash
needs_mpi

for ranks in 1 2 3 4 6; do
    code_of "${launch[@]}" $ranks "$(dirname "$MOP")/tests/test_comm"
    [[ $code == 0 && $(grep -c "PASSED" "$here/err" "$here/out" | awk -F: '{ n += $2 } END { print n }') == "$ranks" ]] ||
        wrong "$ranks ranks: exit $code, $(cat "$here/out" "$here/err")"
done
