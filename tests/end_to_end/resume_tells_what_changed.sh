#!/usr/bin/env bash
# A setting that may change at a resume and did is told once: a line on the terminal, an event, a comment in config.yaml, which stays the
# configuration of the run and keeps what later resumes change.
. tests/end_to_end/common.bash

run="$here/run"
# `go FLAG...`, and `told LINE...`: this is all that it says has changed. `history LINE...`: this is all that config.yaml tells.
go() {
    tiny "$run" --set checkpoint.every=2 --set optimizer.schedule=constant "$@" >"$here/out"
}
told() {
    diff <(sed -n 's/^changed: //p' "$here/out") <(for line in "$@"; do echo "$line"; done) || wrong "that is told instead"
}
history() {
    diff <(sed -n 's/^# after step //p' "$run/config.yaml") <(for line in "$@"; do echo "$line"; done) || wrong "that is kept instead"
    [[ $("$MOP" config show "$run/config.yaml" | grep -c .) -gt 40 ]] || wrong "config.yaml is no configuration"
}

go --set train.steps=2
told
history
go --set train.steps=4 --set optimizer.learning_rate=0.001
told "train.steps 2 -> 4" "optimizer.learning_rate 0.002 -> 0.001"
lines=("2: train.steps 2 -> 4" "2: optimizer.learning_rate 0.002 -> 0.001")
history "${lines[@]}"

# The same command again, and after a crash before the first checkpoint of its own; threads are the machine's.
go --set train.steps=4 --set optimizer.learning_rate=0.001 --set compute.threads=2
told
rm -r "$run/ckpt/step-00000004"
go --set train.steps=4 --set optimizer.learning_rate=0.001
told
history "${lines[@]}"

# The old value again; a layout; a sample's prompt with what YAML escapes.
go --set train.steps=6 --set ranks=2 --set train.sample_prompt=$'a "b"\n: c'
told "train.steps 4 -> 6" 'train.sample_prompt "" -> "a \"b\"\n: c"' "ranks 1 -> 2" "optimizer.learning_rate 0.001 -> 0.002" "mixture.dense 1 -> 2"
lines+=("4: train.steps 4 -> 6" '4: train.sample_prompt "" -> "a \"b\"\n: c"' "4: ranks 1 -> 2" "4: optimizer.learning_rate 0.001 -> 0.002" "4: mixture.dense 1 -> 2")
history "${lines[@]}"
grep -q "learning_rate: 0.002 " <("$MOP" config show "$run/config.yaml") || wrong "config.yaml has another rate"

# What was told for steps that are lost holds from the checkpoint that is left.
rm -r "$run/ckpt/step-00000006" "$run/ckpt/step-00000004"
go --set train.steps=6 --set ranks=2 --set train.sample_prompt=$'a "b"\n: c'
told
history "${lines[@]/#4:/2:}"

# A long list is told in short: the file must stay a configuration.
split -n l/60 -d examples/tiny.jsonl "$here/part" --additional-suffix=.jsonl
list=$(printf '%s, ' "$here"/part*.jsonl)
go --set train.steps=7 --set "data.path=[${list%, }]"
grep -q "^changed: data.path \[\"$PWD/examples/tiny.jsonl\"\] -> \[\".\{100,220\}\.\.\.$" "$here/out" || wrong "it says: $(grep data.path "$here/out")"

# As many events as lines.
[[ $(grep -c '"event": "changed"' "$run/events.jsonl") == $(grep -c "^# after step" "$run/config.yaml") ]] || wrong "events: $(cat "$run/events.jsonl")"
grep -q '{"event": "changed", "step": 2, .*"text": "optimizer.learning_rate 0.002 -> 0.001"}' "$run/events.jsonl" || wrong "events: $(cat "$run/events.jsonl")"
