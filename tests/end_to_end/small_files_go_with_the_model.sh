#!/usr/bin/env bash
# Generation config, chat template, tokenizer files and licence of the model that training began from are in every checkpoint
# and in the export, byte for byte; a resumed run has them from its checkpoint.
. tests/end_to_end/common.bash

case=tests/cases/small_files_lost
model=$here/model
cp -r "$case/model" "$model"
train=(train "$case/train.yaml" --set data.path="$case/plain.jsonl" --set model.path="$model" --run)
"$MOP" "${train[@]}" "$here/run" --set train.steps=7 --set optimizer.schedule=constant >/dev/null
names=(generation_config.json chat_template.jinja special_tokens_map.json added_tokens.json tokenizer.json tokenizer_config.json LICENSE)
for name in "${names[@]}"; do cmp "$case/model/$name" "$here/run/ckpt/step-00000007/$name"; done
rm "$model/chat_template.jinja" "$model/generation_config.json"
"$MOP" "${train[@]}" "$here/run" --set train.steps=14 --set optimizer.schedule=constant >/dev/null
"$MOP" export "$here/run" --out "$here/export" >/dev/null
for name in "${names[@]}"; do
    cmp "$case/model/$name" "$here/run/ckpt/step-00000014/$name"
    cmp "$case/model/$name" "$here/export/$name"
    grep -q "\"$name\"" "$here/run/ckpt/step-00000014/manifest.json" || wrong "$name is not in the manifest"
done
"$MOP" ckpt verify "$here/run" >/dev/null

# What cannot be carried is refused before anything is made.
printf '{"eos_token_id": ' >"$model/generation_config.json"
refuses 3 "not valid JSON: .*generation_config.json" "${train[@]}" "$here/other"
absent "$here/other"
