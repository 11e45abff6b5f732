#!/usr/bin/env bash
# Ranks that were started with different settings are refused in one sentence, before anything is made.
. tests/end_to_end/common.bash
needs_mpi

rank=("$MOP" train examples/tiny.yaml --run "$here/run" --set train.steps=3)
for setting in optimizer.clip=2 mixture.expert=2 train.steps=4; do
    code_of "${launch[@]}" 1 "${rank[@]}" : -n 1 "${rank[@]}" --set $setting
    [[ $code == 2 && $(grep -c "^mop: error" "$here/err") == 1 ]] || wrong "$setting on one rank: exit $code, $(cat "$here/err")"
    grep -q "^mop: error\[2\]: the settings differ on rank 1: give every rank the same configuration and the same --set$" "$here/err" || wrong "it says: $(cat "$here/err")"
    absent "$here/run"
done
code_of "${launch[@]}" 1 "${rank[@]}" : -n 1 "${rank[@]}" --set compute.threads=2
[[ $code == 0 ]] || wrong "ranks may have different numbers of threads, but: exit $code, $(cat "$here/err")"
