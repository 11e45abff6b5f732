#!/usr/bin/env bash
# Steps that are not finite count on when a run is started again; a run that ends with one saves the weights of its last good step,
# ends with 7, and again when it is started again. People never see a nan.
. tests/end_to_end/common.bash

run=$here/run
wild=(--set optimizer.learning_rate=1000 --set optimizer.clip=0 --set optimizer.warmup=0 --set optimizer.schedule=constant
    --set train.max_bad_steps=3 --set ranks=2)
code_of tiny "$here/first" "${wild[@]}" --set train.steps=60
[[ $code == 7 ]] || wrong "the wild run ended with $code: $(cat "$here/err")"
bad=$(sed -nE 's/.*"event": "not_finite", "step": ([0-9]+),.*/\1/p' "$here/first/events.jsonl" | tail -n 3 | head -n 1)
good=$((bad - 1))
name() { printf 'step-%08d' "$1"; }

# It ends with two bad steps.
for again in first second; do
    refuses 7 "the last 2 steps had no finite loss and gradient and changed nothing, so the weights are those after step $good; .*raise train.steps" \
        train examples/tiny.yaml --run "$run" "${wild[@]}" --set train.steps=$((bad + 1))
    [[ $(ls "$run/ckpt") == "$(name $((bad + 1)))" ]] || wrong "the $again time it left $(ls "$run/ckpt")"
    grep -Eqi '(^|[^a-z])-?nan' "$here/out" && wrong "it says nan: $(cat "$here/out")"
done
grep -Eq '"event": "not_finite".*is not finite; the step changes nothing' "$run/events.jsonl" || wrong "no event tells of the bad steps"
"$MOP" report "$run" | grep -Eqi '(^|[^a-z])-?nan' && wrong "the report says nan: $("$MOP" report "$run")"
tiny "$here/good" "${wild[@]}" --set train.steps=$good >/dev/null || [[ $good -lt 1 ]] || wrong "$good steps do not end well"
cmp "$here/good/ckpt/$(name "$good")/model.safetensors" "$run/ckpt/$(name $((bad + 1)))/model.safetensors" ||
    wrong "the weights are not those of the last good step"

# The third is the third in a row, though the process saw but one.
refuses 7 "3 steps in a row had no finite loss and gradient" train examples/tiny.yaml --run "$run" "${wild[@]}" --set train.steps=60

# Started again before each of its steps, it ends all the same.
for ((steps = 1; steps <= bad + 3; steps++)); do
    code_of tiny "$here/steps" "${wild[@]}" --set train.steps=$steps
    ((code != 0 || steps < bad)) || wrong "step $steps is bad and it ended with 0"
done
grep -q "3 steps in a row had no finite loss and gradient" "$here/err" || wrong "it says $(cat "$here/err")"
