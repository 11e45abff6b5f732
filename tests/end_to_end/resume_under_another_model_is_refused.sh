#!/usr/bin/env bash
# A run goes on only as the model, the text and the tokenizer that it began with, whatever they are called now; weights that it started
# from are not read again, and their licence stays with it.
. tests/end_to_end/common.bash

cp -r examples/tiny.json examples/tiny.jsonl "$here/"
constant=(--set optimizer.schedule=constant) # steps of runs of other lengths are the same then
tiny "$here/run" "${constant[@]}" --set model.config="$here/tiny.json" --set data.path="$here/tiny.jsonl" --set train.steps=2 >/dev/null
cp "$here/run/metrics.jsonl" "$here/before"
same=(train examples/tiny.yaml --run "$here/run" "${constant[@]}" --set train.steps=3)

# The file itself was edited.
sed -i 's/10000.0/50000.0/' "$here/tiny.json"
refuses 2 "rope_theta was 10000 when the run began and is 50000 now" "${same[@]}" --set model.config="$here/tiny.json" --set data.path="$here/tiny.jsonl"
cmp "$here/run/metrics.jsonl" "$here/before"

# `under EDIT PATTERN`: the config.json that sed makes.
under() {
    sed "$1" examples/tiny.json >"$here/edited.json"
    cmp -s examples/tiny.json "$here/edited.json" && wrong "'$1' edits nothing"
    refuses 2 "the model's config.json changed: $2; the run's own is $here/run/ckpt/step-00000002/config.json; give that back, or begin a new run with --run" \
        "${same[@]}" --set model.config="$here/edited.json"
    cmp "$here/run/metrics.jsonl" "$here/before"
}
under 's/10000.0/50000.0/' "rope_theta was 10000 when the run began and is 50000 now"
under 's/"norm_topk_prob": false/"norm_topk_prob": true/' "norm_topk_prob was false when the run began and is true now"
under 's/1e-05/1e-06/' "rms_norm_eps was 1e-5 when the run began and is 1e-6 now"
under 's/"num_experts_per_tok": 2/"num_experts_per_tok": 3/' "num_experts_per_tok was 2 when the run began and is 3 now"
under 's/"num_experts": 7/"num_experts": 6/; s/259/260/' "vocab_size was 259 .* is 260 now, num_experts was 7 .* is 6 now"

# A window, a dense layer: what Mixtral and Qwen3-MoE have.
echo '{"input_ids": [3, 1, 4, 1, 5, 9, 2, 6]}' >"$here/ids.jsonl"
of_family() {
    local family=$1 edit=$2 pattern=$3
    local of=(train --set data.path="$here/ids.jsonl" --set train.sequence_length=8 --set train.sequences=1)
    "$MOP" "${of[@]}" --run "$here/$family" --set model.config=tests/fixtures/$family/config.json --set train.steps=1 >/dev/null
    sed -Ez "$edit" tests/fixtures/$family/config.json >"$here/edited.json"
    refuses 2 "$pattern" "${of[@]}" --run "$here/$family" --set model.config="$here/edited.json" --set train.steps=2
}
of_family mixtral 's/"sliding_window": 5/"sliding_window": 6/' "sliding_window was 5 when the run began and is 6 now"
of_family qwen3_moe_window 's/"use_sliding_window": true/"use_sliding_window": false/' "sliding_window was 4 when the run began and is 0 now"
of_family qwen3_moe 's/"mlp_only_layers": \[[^]]*\]/"mlp_only_layers": [0, 1]/' "dense layers was 1 when the run began and is 0 1 now"

# Another tokenizer, of the same text's ids.
tiny "$here/ids" --set data.path="$here/ids.jsonl" --set train.steps=1 >/dev/null
sed 's/"a": *97\b/"a": 98/; s/"b": *98\b/"b": 97/' "$here/ids/ckpt/step-00000001/tokenizer.json" >"$here/swapped.json"
refuses 2 "the tokenizer is not the one that the run began with; " train examples/tiny.yaml --run "$here/ids" --set data.path="$here/ids.jsonl" \
    --set train.steps=2 --set data.tokenizer="$here/swapped.json"

# The same files elsewhere, in another spelling, or as a token file: to the bits of a run that never moved.
tiny "$here/never" "${constant[@]}" --set train.steps=5 >/dev/null
rm "$here/tiny.json" "$here/tiny.jsonl"
mkdir -p "$here/else/where"
cp examples/tiny.jsonl "$here/else/where/text.jsonl"
sed 's/10000.0/1e4/; s/"bos_token_id": null,//; s/  */ /g' examples/tiny.json >"$here/else/where/model.json"
"$MOP" data examples/tiny.jsonl --out "$here/else/t.tokens" >/dev/null
cp "$here/run/ckpt/step-00000002/tokenizer.json" "$here/else/tokenizer.json"
mop=$(realpath "$MOP") yaml=$(realpath examples/tiny.yaml)
(cd "$here/else" && "$mop" train "$yaml" --run ../run "${constant[@]}" --set train.steps=3 --set model.config=where/model.json --set data.path=where/text.jsonl) >/dev/null
"$MOP" "${same[@]}" --set train.steps=4 --set data.path="$here/else/t.tokens" --set data.tokenizer="$here/else/tokenizer.json" >/dev/null
tiny "$here/run" "${constant[@]}" --set train.steps=5 >/dev/null
same_bits "$here/run" "$here/never"

# The coefficient of a loss may change, as the setting that wins over it may; it is told. How weights began is over.
sed 's/"router_aux_loss_coef": 0.01/"router_aux_loss_coef": 0.5/; s/"initializer_range": 0.02/"initializer_range": 0.03/' examples/tiny.json >"$here/edited.json"
tiny "$here/run" --set train.steps=6 --set model.config="$here/edited.json" >"$here/out"
grep -qx "changed: the model's router_aux_loss_coef 0.01 -> 0.5" "$here/out" || wrong "it says: $(cat "$here/out")"
grep -q "initializer_range" "$here/out" && wrong "what has no effect any more is told: $(cat "$here/out")"

# Weights that a run started from are read once, and their licence stays with the run.
cp -r "$here/never/ckpt/step-00000005" "$here/begin"
echo "do what is right" >"$here/begin/LICENSE"
rm "$here/begin/manifest.json" # which does not list the licence
tiny "$here/from" --set model.path="$here/begin" --set train.steps=1 >/dev/null
tiny "$here/unmoved" --set model.path="$here/begin" --set train.steps=1 >/dev/null
tiny "$here/unmoved" --set model.path="$here/begin" --set train.steps=3 --set checkpoint.every=1 --set checkpoint.keep=1 >/dev/null
rm -r "$here/begin"
tiny "$here/from" --set train.steps=3 --set checkpoint.every=1 --set checkpoint.keep=1 >/dev/null
cmp <(numbers "$here/from") <(numbers "$here/unmoved")
for file in model optim-00001-of-00001; do cmp "$here"/{from,unmoved}/ckpt/step-00000003/$file.safetensors; done
grep -q "do what is right" "$here/from/ckpt/step-00000003/LICENSE" || wrong "the licence is lost"
