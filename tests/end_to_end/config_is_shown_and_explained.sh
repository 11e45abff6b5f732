#!/usr/bin/env bash
# help, config show and config explain tell of every setting; what is shown reads back as it is.
. tests/end_to_end/common.bash

"$MOP" config show examples/tiny.yaml --set train.steps=7 --set data.path='[a.txt, b c.txt]' >"$here/shown.yaml"
grep -Eq '^  steps: 7 +# ' "$here/shown.yaml" || wrong "--set train.steps=7 is not shown: $(cat "$here/shown.yaml")"
"$MOP" config show "$here/shown.yaml" | cmp - "$here/shown.yaml"
grep -qF "  path: [\"$PWD/a.txt\", \"$PWD/b c.txt\"]" "$here/shown.yaml" || wrong "paths are not shown whole: $(cat "$here/shown.yaml")"
"$MOP" config show >"$here/defaults.yaml"
"$MOP" config show "$here/defaults.yaml" | cmp - "$here/defaults.yaml"

"$MOP" help >"$here/help"
for command in train evaluate generate plan verify-layouts report doctor data export inspect ckpt config help; do
    grep -Eq "^  mop $command " "$here/help" || wrong "help does not tell of mop $command"
    "$MOP" help $command | grep -q "^mop $command" || wrong "mop help $command does not"
    "$MOP" $command --help | grep -q "^mop $command" || wrong "mop $command --help does not"
done
"$MOP" --help | cmp - "$here/help"
"$MOP" ckpt list --help | cmp - <("$MOP" help ckpt)
"$MOP" train examples/tiny.yaml --help | cmp - <("$MOP" help train)
for word in verify list prune diff --keep; do
    "$MOP" help ckpt | grep -q -- "$word" || wrong "mop help ckpt does not tell of $word"
done
"$MOP" help data | grep -q -- "^--tokenizer" || wrong "mop help data does not tell of --tokenizer"
"$MOP" help generate | grep -q -- "^--top-p" || wrong "mop help generate does not tell of --top-p"
"$MOP" help mixture | grep -q "^mixture.ring " || wrong "mop help mixture does not list its keys"
"$MOP" config explain mixture | cmp - <("$MOP" help mixture)

keys=(model.config model.path data.path train.steps train.sequence_length train.sequences train.micro_batches train.seed compute.type
    compute.threads device ranks optimizer.learning_rate optimizer.beta1 optimizer.beta2 optimizer.epsilon optimizer.weight_decay
    optimizer.clip optimizer.schedule optimizer.warmup loss.balance loss.router_z checkpoint.every mixture.dense mixture.expert)
for key in "${keys[@]}"; do
    grep -Eq "^$key " "$here/help" || wrong "help does not tell of $key"
    "$MOP" config explain "$key" | grep -q "^  value    " || wrong "$key is not explained"
done
refuses 2 "there is no setting train.step; the nearest is train.steps" config explain train.step
refuses 2 "there is no setting lr; here it is optimizer.learning_rate" help lr
refuses 2 "use .mop config show" config
for command in help "config show" "config explain ranks"; do
    [[ ! -c /dev/full ]] && continue
    # shellcheck disable=SC2086
    code=0; "$MOP" $command >/dev/full 2>/dev/null || code=$?
    [[ $code == 5 ]] || wrong "mop $command into a full disk ended with $code"
done
