#!/usr/bin/env bash
# A run directory holds a resolved config.yaml that reads back, a metrics object a step with the documented keys, events, and
# checkpoints; --run has its default.
. tests/end_to_end/common.bash

tiny "$here/run" --set ranks=2 >"$here/out"
[[ $(ls "$here/run") == $'ckpt\nconfig.yaml\nevents.jsonl\nmetrics.jsonl' ]] || wrong "the run directory holds $(ls "$here/run")"
[[ $(ls "$here/run/ckpt") == step-00000012 ]] || wrong "the checkpoints are $(ls "$here/run/ckpt")"
for file in config.json model.safetensors tokenizer.json manifest.json state.json; do
    [[ -s $here/run/ckpt/step-00000012/$file ]] || wrong "the checkpoint has no $file"
done

number='-?[0-9][-+.e0-9]*'
times='\{'
for key in attention dense router experts vocabulary optimizer other; do times+="\"$key\": $number, "; done
times=${times%, }'\}'
line='\{'
for key in step loss balance_loss grad_norm lr tokens seconds tokens_per_s memory_bytes; do line+="\"$key\": $number, "; done
for key in compute_s network_s exposed_s; do line+="\"$key\": $times, "; done
line+="\"expert_load_max_over_mean\": $number, "
line=${line%, }'\}'
[[ $(grep -Ecx "$line" "$here/run/metrics.jsonl") == 12 ]] || wrong "metrics.jsonl has other lines than 12 of $line: $(head -n 1 "$here/run/metrics.jsonl")"
grep -v '"event": "warning"' "$here/run/events.jsonl" >"$here/events" # of a machine with few cores
[[ $(grep -Ecx '\{"event": "(checkpoint|done)", "step": 12, "time": [0-9]+, "text": ".*"\}' "$here/events") == 2 && $(wc -l <"$here/events") == 2 ]] ||
    wrong "events.jsonl does not tell of one checkpoint and the end: $(cat "$here/run/events.jsonl")"

# Plain lines where there is no terminal: a banner, the initial loss beside that of a guess, progress.
grep -q $'[\r\033]' "$here/out" && wrong "the output is not plain: $(cat -v "$here/out")"
for text in "thousand parameters" "^ranks +2 x 1 thread" "memory at most .* MiB" "^step +512 tokens" "^steps +1 to 12" "^run +$here/run" \
    "^initial loss 5\.[0-9]+; a random guess among 259 ids has 5\.5568$" "^step 1/12  loss" "^step 12/12  loss" "^checkpoint: " "^done: 12 steps in "; do
    grep -Eq -- "$text" "$here/out" || wrong "the output has no '$text': $(cat "$here/out")"
done

# Resolved: what was left to the program has its value; and it is a fixed point.
grep -Eq '^ranks: 2 ' "$here/run/config.yaml" || wrong "config.yaml does not say ranks: 2"
grep -Eq '^  dense: 2 ' "$here/run/config.yaml" || wrong "config.yaml does not say mixture.dense: 2"
"$MOP" config show "$here/run/config.yaml" | cmp - "$here/run/config.yaml"
"$MOP" train "$here/run/config.yaml" --run "$here/again" >/dev/null
same_bits "$here/run" "$here/again"

# runs/ and the config's name.
cd "$here"
cp -r "$OLDPWD/examples" .
"$MOP" train examples/tiny.yaml --set train.steps=2 >/dev/null
[[ -d runs/tiny/ckpt/step-00000002 ]] || wrong "the run is not in runs/tiny: $(ls -R runs)"

# A run that is done says so and changes nothing.
"$MOP" train examples/tiny.yaml --set train.steps=2 | grep -q "^done: .*raise train.steps" || wrong "a finished run does not say that it is"
[[ $(wc -l <runs/tiny/metrics.jsonl) == 2 ]] || wrong "a finished run was trained on"
