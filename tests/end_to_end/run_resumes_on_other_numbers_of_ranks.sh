#!/usr/bin/env bash
# What 4 ranks saved, 1, 2 and 3 ranks continue, with the losses of the run on 4, whoever has the vocabulary.
. tests/end_to_end/common.bash

tiny "$here/four" --set ranks=4 --set mixture.expert=4 --set mixture.vocabulary=4 --set checkpoint.every=6 >/dev/null
rm -r "$here/four/ckpt/step-00000012"
for layout in "1 1 1" "2 2 1" "3 1 3"; do
    read -r ranks expert vocabulary <<<"$layout"
    cp -r "$here/four" "$here/other"
    tiny "$here/other" --set ranks=$ranks --set mixture.expert=$expert --set mixture.vocabulary=$vocabulary >"$here/out"
    grep -q "^resume: from .*step-00000006$" "$here/out" || wrong "$ranks ranks did not resume from step 6: $(cat "$here/out")"
    for step in 7 8 9 10 11 12; do
        close "$(value loss $step "$here/other")" "$(value loss $step "$here/four")" 1e-5
        close "$(value grad_norm $step "$here/other")" "$(value grad_norm $step "$here/four")" 1e-4
    done
    rm -r "$here/other"
done
