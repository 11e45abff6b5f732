#!/usr/bin/env bash
# A run goes on only as what it began; a run directory is one process's.
. tests/end_to_end/common.bash

run="$here/run"
cp examples/tiny.jsonl "$here/text.jsonl"
tiny "$run" --set data.path="$here/text.jsonl" >/dev/null
cp "$run/metrics.jsonl" "$here/before"

same=(train examples/tiny.yaml --run "$run" --set train.steps=14)
same+=(--set data.path="$here/text.jsonl")
refuses 2 "train.seed was 1 when the run began and is 2 now; set it back, or begin a new run with --run" "${same[@]}" --set train.seed=2
refuses 2 "train.sequence_length was 64 when the run began and is 32 now" "${same[@]}" --set train.sequence_length=32
refuses 2 "compute.type was fp32 when the run began and is fp64 now" "${same[@]}" --set compute.type=fp64
cp "$here/text.jsonl" "$here/before.jsonl"
echo '{"text": "one more document"}' >>"$here/text.jsonl"
refuses 3 "the data is not what this run was trained on" "${same[@]}"
cmp "$run/metrics.jsonl" "$here/before"

# Where config.yaml is missing, the checkpoint knows that the settings are others, though not which.
cp "$here/before.jsonl" "$here/text.jsonl"
mv "$run/config.yaml" "$here/config.yaml"
refuses 2 "a setting that may not change is another one than when the run began, and config.yaml, .* is missing" "${same[@]}" --set train.seed=2
mv "$here/config.yaml" "$run/"
cmp "$run/metrics.jsonl" "$here/before"

# Without a checkpoint there is nothing to disagree with.
rm -r "$run/ckpt"
tiny "$run" --set train.seed=2 --set train.steps=2 >/dev/null
[[ $(wc -l <"$run/metrics.jsonl") == 2 ]] || wrong "metrics of the forgotten run are still there"

begin "$MOP" train examples/tiny.yaml --run "$here/busy" --set train.steps=100000
wait_for 1 "$here/busy"
refuses 2 "another process is training in $here/busy" train examples/tiny.yaml --run "$here/busy" --set train.steps=100000
