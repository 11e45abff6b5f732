#!/usr/bin/env bash
# A model that mop trained and exported loads in Hugging Face transformers, with no tensor missing or unused, and has the same loss
# there, for every family. Needs a Python with torch and transformers: python3, or what MOP_PYTHON names.
. tests/end_to_end/common.bash

python=${MOP_PYTHON:-python3}
"$python" -c "import torch, transformers" 2>/dev/null || skip "there is no Python with torch and transformers"

# Token ids below 67, the fixtures' vocabulary, in documents of 40, 23 and 9 tokens.
documents=$(for n in 40 23 9; do seq 0 $((n - 1)) | awk -v n="$n" '{ printf("%s%d", (NR > 1 ? ", " : ""), ($1 * $1 * 7 + $1 * n + 3) % 67) }'; echo; done)
sed 's/.*/[&]/' <<<"$documents" | paste -sd, | sed 's/.*/[&]/' >"$here/documents.json"
sed 's/.*/{"input_ids": [&]}/' <<<"$documents" >"$here/documents.jsonl"

for family in olmoe qwen3_moe qwen3_moe_window mixtral; do
    cat >"$here/$family.yaml" <<YAML
model: {path: $PWD/tests/fixtures/$family}
data: {path: $here/documents.jsonl}
train: {steps: 3, sequences: 4, sequence_length: 40}
ranks: 2
mixture: {expert: 2}
YAML
    "$MOP" train "$here/$family.yaml" --run "$here/run-$family" >/dev/null
    "$MOP" export "$here/run-$family" --out "$here/$family" >/dev/null
    ours=$("$MOP" evaluate "$here/$family.yaml" --set model.path="$here/$family" --set train.sequence_length=72 | sed -E 's/.*"loss": ([^,]*).*/\1/')
    absent "$here/$family/tokenizer.json" "$here/$family/tokenizer_config.json" # bytes do not name the fixtures' ids
    theirs=$("$python" tests/fixtures/check_export.py "$here/$family" "$here/documents.json" | sed -E 's/.*"loss": ([^,]*).*/\1/')
    close "$ours" "$theirs" 1e-5
    echo "$family: $ours here, $theirs in transformers"
done
