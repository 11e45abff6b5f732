#!/usr/bin/env bash
# Four documents of 65 tokens in one sequence of 260 are one step with 256 trained tokens; labels of -100 are not trained; text
# files are documents of their own.
. tests/end_to_end/common.bash

document() { # FIRST COUNT: so many token ids
    seq -s ', ' "$1" $(($1 + $2 - 1))
}
for i in 1 2 3 4; do echo "{\"input_ids\": [$(document $i 65)]}"; done >"$here/four.jsonl"
shape=(--set train.sequence_length=260 --set train.sequences=1 --set train.micro_batches=1 --set train.steps=1)
tiny "$here/four" --set data.path="$here/four.jsonl" "${shape[@]}" >/dev/null
[[ $(value tokens 1 "$here/four") == 256 ]] || wrong "$(value tokens 1 "$here/four") tokens were trained, not 256"
[[ $("$MOP" evaluate examples/tiny.yaml --set data.path="$here/four.jsonl" "${shape[@]}" 2>/dev/null) == *'"tokens": 256,'* ]] || wrong "evaluate has other tokens"

# More ranks than sequences; and cut into pieces of 13, no target is lost.
tiny "$here/three" --set data.path="$here/four.jsonl" "${shape[@]}" --set ranks=3 >/dev/null
close "$(value loss 1 "$here/three")" "$(value loss 1 "$here/four")" 1e-6
tiny "$here/cut" --set data.path="$here/four.jsonl" --set train.sequence_length=13 --set train.sequences=20 --set train.steps=1 >/dev/null
[[ $(value tokens 1 "$here/cut") == 256 ]] || wrong "cut into 13s, $(value tokens 1 "$here/cut") tokens were trained"

echo "{\"input_ids\": [$(document 1 8)], \"labels\": [-100, -100, -100, 4, 5, -100, 7, 8]}" >"$here/labels.jsonl"
tiny "$here/labels" --set data.path="$here/labels.jsonl" "${shape[@]}" >/dev/null
[[ $(value tokens 1 "$here/labels") == 4 ]] || wrong "$(value tokens 1 "$here/labels") tokens were trained, not 4"

mkdir "$here/texts"
printf 'abcdef' >"$here/texts/a.txt"
printf 'ghi' >"$here/texts/b.txt"
tiny "$here/text" --set data.path="$here/texts" "${shape[@]}" >/dev/null
[[ $(value tokens 1 "$here/text") == 7 ]] || wrong "two texts of 6 and 3 bytes gave $(value tokens 1 "$here/text") targets"
"$MOP" data "$here/texts" --out "$here/texts.tokens" >/dev/null
tiny "$here/tokens" --set data.path="$here/texts.tokens" "${shape[@]}" >/dev/null
cmp <(numbers "$here/text") <(numbers "$here/tokens")
