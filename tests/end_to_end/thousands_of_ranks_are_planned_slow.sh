#!/usr/bin/env bash
# A plan of more ranks than any table of fixed size has held, in memory that grows with the ranks and not with their square.
. tests/end_to_end/common.bash

code_of "$MOP" plan examples/tiny.yaml --set train.sequence_length=8 --set ranks=4100
[[ $code == 0 ]] || wrong "4100 ranks: exit $code, $(cat "$here/err")"
grep -q "^ranks     4100$" "$here/out" && grep -q "^predicted " "$here/out" || wrong "4100 ranks: $(cat "$here/out")"

# The world and the dense weights are axes of all ranks: tables of those once took 800 MiB here.
begin "$MOP" plan examples/tiny.yaml --set train.sequence_length=8 --set ranks=2048
most=0
while [[ -n $(jobs -pr) ]]; do
    now=$(sed -nE 's/^VmHWM:[^0-9]*([0-9]+) kB/\1/p' "/proc/$job/status" 2>/dev/null) || now=
    [[ -z $now ]] || most=$now
    sleep 0.2
done
ended
[[ $code == 0 ]] || wrong "2048 ranks: exit $code, $(cat "$here/err")"
if ! grep -qa -e __asan_init -e __tsan_init "$MOP"; then
    ((most < 400 * 1024)) || wrong "2048 ranks took $((most / 1024)) MiB"
fi
