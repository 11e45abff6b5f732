#!/usr/bin/env bash
# A run that is killed between two checkpoints and started again ends with the metrics (no line lost, none twice) and the checkpoint
# of one that was never killed, to the bit.
. tests/end_to_end/common.bash

options=(--set train.steps=100 --set optimizer.schedule=constant --set checkpoint.every=20 --set checkpoint.keep=0)

for ranks in 1 2 4; do
    tiny "$here/whole" "${options[@]}" --set ranks=$ranks >/dev/null
    for step in 12 35 70; do
        begin "$MOP" train examples/tiny.yaml --run "$here/killed" "${options[@]}" --set ranks=$ranks
        wait_for $step "$here/killed"
        kill -9 "$job"
        ended
        printf '{"step": 99, "loss": 1.2' >>"$here/killed/metrics.jsonl" # as if the last line had been cut
    done
    tiny "$here/killed" "${options[@]}" --set ranks=$ranks >/dev/null
    same_bits "$here/whole" "$here/killed"
    [[ $(sed -E 's/^\{"step": ([0-9]+),.*/\1/' "$here/killed/metrics.jsonl") == "$(seq 100)" ]] || wrong "the steps are not 1 to 100"
    rm -r "$here/whole" "$here/killed"
done
