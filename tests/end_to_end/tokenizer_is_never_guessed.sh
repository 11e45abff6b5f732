#!/usr/bin/env bash
# A tokenizer.json beside the model is its tokenizer, also beside model.config. One that mop cannot use is an error only where
# there is text, and goes on into checkpoints unchanged; bytes are taken where the vocabulary is one of bytes, or when asked for.
. tests/end_to_end/common.bash

mkdir "$here/bpe" "$here/wide"
cp examples/tiny.json "$here/bpe/config.json"
sed 's/"vocab_size": 259/"vocab_size": 5000/' examples/tiny.json >"$here/wide/config.json"
cat >"$here/bpe/tokenizer.json" <<'JSON'
{"version": "1.0",   "model": {"type": "BPE", "vocab": {"a": 0, "aa": 1}, "merges": [["a", "a"]]}}
JSON
echo '{"chat_template": "x", "model_max_length": 1000000000000000019884624838656}' >"$here/bpe/tokenizer_config.json"
echo '{"input_ids": [1, 2, 3, 4, 5], "completion_mask": [0, 0, 1, 1, 1]}' >"$here/ids.jsonl"
bpe=(examples/tiny.yaml --set model.config="$here/bpe/config.json" --set train.steps=1)
wide=(examples/tiny.yaml --set model.config="$here/wide/config.json" --set train.steps=1)

refuses 3 'text needs a tokenizer \(examples/tiny.jsonl:1\), and the tokenizer has merges: BPE is not built yet; .*bpe/tokenizer.json; ' train "${bpe[@]}" --run "$here/no"
refuses 3 'text needs a tokenizer \(--prompt\), and the tokenizer has merges' generate "${bpe[@]}" --prompt a
refuses 3 'text needs a tokenizer \(train.sample_every\), and the tokenizer has merges' train "${bpe[@]}" --set data.path="$here/ids.jsonl" --set train.sample_every=0 --run "$here/no"
refuses 2 'text needs a tokenizer \(examples/tiny.jsonl:1\), and the model has none and 5000 ids' train "${wide[@]}" --run "$here/no"
refuses 2 'text needs a tokenizer \(examples/tiny.jsonl:1\), and data.tokenizer is none' train examples/tiny.yaml --set data.tokenizer=none --run "$here/no"
absent "$here/no"

# Ids need none, and the checkpoint has the files as they were; so has one that was made from that checkpoint.
"$MOP" train "${bpe[@]}" --set data.path="$here/ids.jsonl" --set train.sequences=1 --run "$here/run" >/dev/null
[[ $(value tokens 1 "$here/run") == 3 ]] || wrong "$(value tokens 1 "$here/run") tokens were trained, not the mask's 3"
for file in tokenizer.json tokenizer_config.json; do cmp "$here/bpe/$file" "$here/run/ckpt/step-00000001/$file"; done
"$MOP" train examples/tiny.yaml --set model.path="$here/run" --set data.path="$here/ids.jsonl" --set data.tokenizer=none --set train.steps=1 --run "$here/next" >/dev/null
for file in tokenizer.json tokenizer_config.json; do cmp "$here/bpe/$file" "$here/next/ckpt/step-00000001/$file"; done

# Bytes, because they are asked for.
"$MOP" train "${wide[@]}" --set data.tokenizer=bytes --run "$here/bytes" >/dev/null
grep -q ByteLevel "$here/bytes/ckpt/step-00000001/tokenizer.json" || wrong "the byte tokenizer is not in the checkpoint"

# A token file does not name its tokenizer, but one id a byte is the work of bytes.
"$MOP" data examples/tiny.jsonl --out "$here/t.tokens" >"$here/out"
grep -q "tokenizer *bytes (256 ids)" "$here/out" || wrong "mop data does not name the tokenizer: $(cat "$here/out")"
refuses 3 'the token file was made of bytes, one id each' train "${bpe[@]}" --set data.path="$here/t.tokens" --run "$here/no"
"$MOP" train "${bpe[@]}" --set data.path="$here/t.tokens" --set data.tokenizer=bytes --run "$here/asked" >/dev/null

# What is left out of a directory is told on standard error.
code_of "$MOP" train examples/tiny.yaml --set data.path=tests/cases/jsonl_by_name/directory --set train.steps=1 --set train.sequences=1 --run "$here/directory"
[[ $code == 0 ]] || wrong "a directory with a card and a backup does not train: $(cat "$here/err")"
grep -qx 'mop: data: tests/cases/jsonl_by_name/directory: left out .*README.md, train.jsonl.bak' "$here/err" || wrong "it does not say what was left out: $(cat "$here/err")"
[[ $(value tokens 1 "$here/directory") == 30 ]] || wrong "three documents of 11 bytes gave $(value tokens 1 "$here/directory") targets"
