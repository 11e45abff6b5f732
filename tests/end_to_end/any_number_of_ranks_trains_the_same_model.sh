#!/usr/bin/env bash
# examples/tiny.yaml trains on 1 to 8 ranks (8 are more than it has experts), with experts on one rank or on all, to the same losses.
. tests/end_to_end/common.bash

tiny "$here/1" >/dev/null
for layout in "2 1" "2 2" "3 3" "4 2" "5 5" "6 3" "7 7" "8 8"; do
    read -r ranks expert <<<"$layout"
    tiny "$here/run" --set ranks=$ranks --set mixture.expert=$expert >/dev/null
    for step in 1 6 12; do
        close "$(value loss $step "$here/run")" "$(value loss $step "$here/1")" 1e-5
        [[ $(value tokens $step "$here/run") == "$(value tokens $step "$here/1")" ]] || wrong "$ranks ranks train other tokens in step $step"
    done
    rm -r "$here/run"
done
