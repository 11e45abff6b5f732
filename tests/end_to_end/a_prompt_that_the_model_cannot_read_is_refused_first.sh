#!/usr/bin/env bash
# A prompt beyond the model's vocabulary ends in a sentence before anything is opened or made, however many ranks there are; and
# what the model can read is generated up to its end of text.
. tests/end_to_end/common.bash

case=tests/cases/prompt_beyond_vocabulary
beyond="token 1 of --prompt has id 120, and the model knows ids below 100"
cd "$case" # the paths in its settings start there
MOP=$(cd - >/dev/null && realpath "$MOP")

# Which tokenizer a model of 100 ids has is not clear, and nobody guesses.
refuses 2 "text needs a tokenizer \(--prompt\), and the model has none and 100 ids" generate ev.yaml --set model.path=model --prompt xyz --tokens 3
bytes=(--set data.tokenizer=bytes)
for ranks in 1 3; do
    refuses 2 "$beyond" generate ev.yaml --set model.path=model "${bytes[@]}" --prompt xyz --tokens 3 --set ranks=$ranks
    refuses 2 "token 1 of train.sample_prompt has id 120" train train.yaml --set model.path=model "${bytes[@]}" --run "$here/run" --set ranks=$ranks \
        --set train.sequences=3
done
absent "$here/run"
refuses 2 "token 5 of --prompt" generate ev.yaml --set model.path=model "${bytes[@]}" --prompt "ABCDx" --tokens 3
refuses 2 "token 1 of --prompt has id 255" generate ev.yaml --set model.path=model "${bytes[@]}" --prompt $'\xff' --tokens 3
refuses 2 "\-\-prompt is empty" generate ev.yaml --set model.path=model "${bytes[@]}" --prompt= --tokens 3

# Where no sample is drawn nothing is asked of its prompt.
"$MOP" train train.yaml --set model.path=model "${bytes[@]}" --set train.sample_every=-1 --set train.steps=1 --run "$here/run" >/dev/null

# Longer than a sequence: the model sees its end.
"$MOP" generate ev.yaml --set model.path=model "${bytes[@]}" --prompt "$(printf 'A%.0s' {1..100})" --tokens 3 >"$here/long"
[[ $(head -c 100 "$here/long") == "$(printf 'A%.0s' {1..100})" ]] || wrong "a long prompt is not kept: $(cat -v "$here/long")"

# The third token that it would say is made the end of text: as one id, in a list, and in generation_config.json, which comes first.
cp -r model "$here/model"
say() {
    "$MOP" generate ev.yaml --set model.path="$here/model" "${bytes[@]}" --prompt "ABC" --tokens 8 --temperature 0 "$@"
}
say >"$here/whole"
third=$(tail -c +6 "$here/whole" | head -c 1 | od -An -tu1 | tr -d ' ')
head -c 5 "$here/whole" >"$here/short"
first=$(tail -c +4 "$here/whole" | head -c 2 | od -An -tu1)
[[ " $first " != *" $third "* ]] || skip "the model repeats itself"
echo >>"$here/short"
for end in "$third" "[99, $third]"; do
    echo "{\"eos_token_id\": $end}" >"$here/model/generation_config.json"
    say | cmp - "$here/short" || wrong "it does not end at $end: $(say | cat -v)"
    say --set ranks=2 | cmp - "$here/short" || wrong "two ranks do not end at $end"
done
rm "$here/model/generation_config.json"
sed -i -E "s/\"eos_token_id\": [^,]*/\"eos_token_id\": $third/" "$here/model/config.json"
say | cmp - "$here/short" || wrong "config.json's end of text is not obeyed"
