#!/usr/bin/env bash
# Steps whose gradient is not finite change nothing and are logged; after train.max_bad_steps of them the run ends with exit 7.
. tests/end_to_end/common.bash

refuses 7 "3 steps in a row had no finite loss and gradient; lower optimizer.learning_rate.*step [0-9]+" train examples/tiny.yaml --run "$here/run" \
    --set optimizer.learning_rate=1000 --set optimizer.clip=0 --set optimizer.warmup=0 --set train.steps=60 --set train.max_bad_steps=3 --set ranks=2
[[ $(grep -c '"event": "not_finite"' "$here/run/events.jsonl") -ge 3 ]] || wrong "events.jsonl tells of fewer than 3 bad steps"
grep -Eq '"event": "error".*"code": 7' "$here/run/events.jsonl" || wrong "events.jsonl has no error"
grep -q '"loss": null' "$here/run/metrics.jsonl" || wrong "a loss that is no number is not null"
grep -Eqi 'nan|inf[^o]' "$here/run/metrics.jsonl" && wrong "metrics.jsonl is not JSON"
exit 0
