#!/usr/bin/env bash
# A run that is killed between two checkpoints and started again ends with the metrics (no line lost, none twice) and the checkpoint
# of one that was never killed, to the bit.
. tests/end_to_end/common.bash

for case in "1 5" "2 25" "4 25"; do # killed before the first checkpoint, or after the second
    read -r ranks step <<<"$case"
    options=(--set ranks="$ranks" --set train.steps=60 --set checkpoint.every=10 --set checkpoint.keep=0)
    tiny "$here/whole" "${options[@]}" >/dev/null
    begin "$MOP" train examples/tiny.yaml --run "$here/killed" "${options[@]}"
    wait_for "$step" "$here/killed"
    kill -9 "$job"
    ended
    printf '{"step": 59, "loss": 1.2' >>"$here/killed/metrics.jsonl" # as if the last line had been cut
    tiny "$here/killed" "${options[@]}" >/dev/null
    same_bits "$here/whole" "$here/killed"
    [[ $(sed -E 's/^\{"step": ([0-9]+),.*/\1/' "$here/killed/metrics.jsonl") == "$(seq 60)" ]] || wrong "the steps are not 1 to 60"
    rm -r "$here/whole" "$here/killed"
done
