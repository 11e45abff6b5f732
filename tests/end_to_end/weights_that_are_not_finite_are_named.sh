#!/usr/bin/env bash
# Weights that are not finite end every command that reads them with 7 and the tensor's name; finite ones that overflow give JSON
# with null, and no text of zeros.
. tests/end_to_end/common.bash

cd tests/cases/evaluate_not_finite
MOP=$(cd - >/dev/null && realpath "$MOP")
expert="the weight model.layers.1.mlp.experts.2.up_proj.weight is not a number at element 0; nan"
norm="the weight model.norm.weight is not a number at element 0; nan_norm"
text=$here/text.jsonl
echo '{"text": "in the beginning"}' >"$text"

refuses 7 "$expert" evaluate ev.yaml --set model.path=nan --set data.path=d.jsonl
refuses 7 "$norm" evaluate ev.yaml --set model.path=nan_norm --set data.path="$text"
refuses 7 "$norm" generate ev.yaml --set model.path=nan_norm --prompt "In" --tokens 3
[[ ! -s $here/out ]] || wrong "something was generated: $(od -c "$here/out")"
refuses 7 "$expert" evaluate ev.yaml --set model.path=nan --set data.path=d.jsonl --set ranks=3 --set mixture.expert=3 --set train.sequences=3
refuses 7 "$expert" train ev.yaml --set model.path=nan --set data.path=d.jsonl --run "$here/run"
absent "$here/run/metrics.jsonl" "$here/run/ckpt"

"$MOP" evaluate ev.yaml --set model.path=large --set data.path=d.jsonl >"$here/large"
grep -q '"perplexity": null, ' "$here/large" || wrong "perplexity overflows: $(cat "$here/large")"
grep -Eiq '(nan|inf)[,}]' "$here/large" && wrong "it is not JSON: $(cat "$here/large")"
exit 0
