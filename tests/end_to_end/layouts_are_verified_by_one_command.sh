#!/usr/bin/env bash
# mop verify-layouts trains the same steps in many layouts and holds them to one rank: a line each, exit 0 when all agree and 1 when not.
# It writes nothing, and what it cannot do it refuses in one line.
. tests/end_to_end/common.bash

MOP=$(realpath "$MOP")
mkdir "$here/elsewhere"
ln -s "$PWD/examples" "$here/elsewhere/examples"
cd "$here/elsewhere"

# `verifies CODE ARGUMENT...`: ends with this code; what it says is in $here/out.
verifies() {
    local expected=$1
    shift
    code_of "$MOP" verify-layouts examples/tiny.yaml "$@"
    [[ $code == "$expected" ]] || wrong "verify-layouts $* ended with $code, not $expected: $(cat "$here/err" "$here/out")"
}

# `lines PATTERN`: how many lines say so.
lines() {
    grep -Ec -- "$1" "$here/out" || true
}

# `says PATTERN`: one line does.
says() {
    [[ $(lines "$1") == 1 ]] || wrong "not one line says '$1': $(cat "$here/out")"
}

verifies 0 --ranks 4 --steps 2 --layouts 5
says "^reference: one rank, 2 steps of 8 x 64 tokens, fp64: loss 5\.[0-9]+, after"
for layout in "dense=4 micro_batches=2" "every axis 1" "dense=2" "expert=4" "expert_shard=2" "micro_batches=3" "activations=recompute" \
    "expert=4 dispatch_tokens=22" "expert=4 balance_imports=2"; do
    says "^ *[0-9.e+-]+ +[0-9.e+-]+ +[0-9.e+-]+ +[0-9.e+-]+  ok  +$layout  \(gradient of [a-z_.0-9]+, [a-z ]+ of [a-z_.0-9]+\)$"
done
[[ $(lines DIFFER) == 0 ]] || wrong "layouts differ: $(cat "$here/out")"
says "^$(lines '  ok  ') layouts agree with one rank within 1e-12, worst .* $(lines '  refused  .*;') refused$"

# What the config itself has comes first; a layout that cannot be is refused in words, and no failure. Without --ranks they are the config's.
verifies 0 --set ranks=2 --set mixture.expert=3 --layouts 0 --steps 1 --type fp32
says " layouts on 2 ranks"
[[ $(sed -n 6p "$here/out") == *"  refused  dense=2 expert=3 micro_batches=2: mixture.expert = 3 does not divide the 2 ranks; "* ]] ||
    wrong "the config's own layout is not the first, refused: $(cat "$here/out")"
says "^[0-9]+ layouts agree with one rank within 1e-05"

# Steps so large that rounding grows: layouts differ, all but the one that changes no bit.
verifies 1 --ranks 1 --layouts 0 --steps 12 --set optimizer.learning_rate=3 --set optimizer.warmup=0
says "  DIFFERS  micro_batches=2  "
says "  ok  +activations=recompute  "
says "^$(lines '  DIFFERS  ') of $(lines '^ .*=.*\(gradient') layouts DIFFER from one rank by more than 1e-12, worst "

verify=(verify-layouts examples/tiny.yaml)
refuses 2 "\-\-ranks is \"0\"; it must be an integer from 1 to 64" "${verify[@]}" --ranks 0
refuses 2 "\-\-steps is \"0\"; it must be an integer from 1" "${verify[@]}" --steps 0
refuses 2 "\-\-type is \"bf16\"; it must be fp64 or fp32" "${verify[@]}" --type bf16
refuses 2 "unknown flag --run; verify-layouts takes --set, --ranks, --steps, --layouts, --type" "${verify[@]}" --run x
refuses 2 "nowhere.yaml: .*No such file" verify-layouts nowhere.yaml
refuses 2 "no data: give data.path" "${verify[@]}" --set data.path=
refuses 2 "only meters" "${verify[@]}" --set device=sim:h200
refuses 7 "step [0-9]+ on one rank is not finite" "${verify[@]}" --set optimizer.learning_rate=1e3 --type fp32 --steps 12
export OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_RANK=0 # as mpirun tells its processes
refuses 2 "verify-layouts makes its own ranks.*; leave mpirun out" "${verify[@]}"
unset OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK

# Too large for this machine: known before a step is made.
sed -E 's/("(hidden|intermediate)_size"): [0-9]+/\1: 8192/; s/("num_(experts|attention_heads)"): [0-9]+/\1: 64/; s/("num_hidden_layers"): [0-9]+/\1: 6/' \
    examples/tiny.json >"$here/large.json"
refuses 4 "the largest layout needs up to .* GiB, the results to compare it with .*, and this machine has" "${verify[@]}" \
    --set model.config="$here/large.json"
[[ ! -s $here/out ]] || wrong "something was trained: $(cat "$here/out")"

[[ $(ls -A) == examples ]] || wrong "files were made: $(ls -A)"
