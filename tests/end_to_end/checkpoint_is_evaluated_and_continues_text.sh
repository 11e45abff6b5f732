#!/usr/bin/env bash
# evaluate prints one JSON line, the same on 1 and 3 ranks; generate says the same for a seed, whatever the ranks and threads.
. tests/end_to_end/common.bash

tiny "$here/run" --set train.steps=30 --set checkpoint.every=10 >/dev/null
checkpoint=$here/run/ckpt/step-00000030
number='[0-9][-+.e0-9]*'

evaluate() {
    "$MOP" evaluate examples/tiny.yaml "$@"
}
field() {
    sed -E "s/.*\"$1\": ([^,}]*).*/\1/" "$2"
}

evaluate --set model.path="$checkpoint" >"$here/one"
grep -Eqx "\{\"loss\": $number, \"tokens\": $number, \"perplexity\": $number, \"bits_per_byte\": $number, \"model\": \"$checkpoint\", \"random_weights\": false, \"data\": \[\"examples/tiny.jsonl\"\]\}" "$here/one" || wrong "evaluate prints $(cat "$here/one")"
[[ $(field tokens "$here/one") == 5925 ]] || wrong "5969 tokens in 44 documents are not 5925 targets: $(cat "$here/one")"
evaluate --set model.path="$checkpoint" --set ranks=3 --set mixture.expert=3 --set train.sequences=5 >"$here/three"
for key in loss tokens perplexity bits_per_byte; do close "$(field $key "$here/three")" "$(field $key "$here/one")" 1e-6; done
evaluate --set model.path="$here/run" | cmp - "$here/one" # a run means its newest checkpoint
evaluate 2>"$here/err" >"$here/random"
grep -q "the weights are random" "$here/err" || wrong "nothing says that the weights are random"
awk -v a="$(field loss "$here/one")" -v b="$(field loss "$here/random")" 'BEGIN { exit !(a < b - 1) }' || wrong "training did not lower the loss"

say() {
    "$MOP" generate examples/tiny.yaml --set model.path="$checkpoint" --prompt "The " --tokens 80 "$@"
}
say --seed 7 >"$here/text"
[[ $(head -c 4 "$here/text") == "The " && $(wc -c <"$here/text") -ge 80 ]] || wrong "it is not the prompt and about 80 bytes: $(cat -v "$here/text")"
say --seed 7 --set ranks=2 --set mixture.expert=2 --set compute.threads=2 | cmp - "$here/text"
say --seed 7 --set compute.threads=3 | cmp - "$here/text"
say --seed 8 | cmp -s - "$here/text" && wrong "two seeds say the same"
cmp <(say --temperature 0 --seed 1) <(say --temperature 0 --seed 2)
