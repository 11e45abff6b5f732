#!/usr/bin/env bash
# A Qwen3-MoE checkpoint without rope_theta gives the loss of transformers, whose class has 1e4; an export says what was used.
. tests/end_to_end/common.bash

case=tests/cases/rope_default
"$MOP" evaluate "$case/ev.yaml" --set model.path="$case/model" --set data.path="$case/d.jsonl" --set compute.type=fp64 >"$here/out"
close "$(sed -E 's/.*"loss": ([^,]*),.*/\1/' "$here/out")" 6.0336043168 1e-7
"$MOP" export "$case/model" --out "$here/export" >/dev/null
grep -Eq '"rope_theta": 10000(\.0)?,' "$here/export/config.json" || wrong "the export does not say rope_theta: $(cat "$here/export/config.json")"
