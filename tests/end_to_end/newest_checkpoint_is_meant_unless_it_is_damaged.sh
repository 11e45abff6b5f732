#!/usr/bin/env bash
# RUN means its newest checkpoint for every command; where that is damaged the older one is taken and named. Commands say which
# checkpoint they took or removed, and a path that means none gets a sentence that helps.
. tests/end_to_end/common.bash

run=$here/runs/a
tiny "$run" --set checkpoint.every=6 --set checkpoint.keep=0 >/dev/null
newest=$run/ckpt/step-00000012 older=$run/ckpt/step-00000006
evaluate=(evaluate examples/tiny.yaml --set model.path="$run")
"$MOP" export "$run" --out "$here/new" >"$here/said"
grep -q "of $newest" "$here/said" || wrong "export does not say which checkpoint: $(cat "$here/said")"

# Damage: the older one, named once on stderr, and as an event where there is a journal.
cp "$newest/state.json" "$here/state.json"
printf '?' | dd of="$newest/state.json" bs=1 seek=20 conv=notrunc status=none
for command in "export $run --out $here/old" "generate examples/tiny.yaml --set model.path=$run --prompt a --tokens 1" "${evaluate[*]}"; do
    code_of "$MOP" $command
    [[ $code == 0 ]] || wrong "mop $command ended with $code: $(cat "$here/err")"
    grep -q "^mop: warning: 1 newer checkpoint is passed over (.*$newest.*); $older is taken instead" "$here/err" ||
        wrong "mop $command does not name the older checkpoint: $(cat "$here/err")"
done
"$MOP" export "$older" --out "$here/six" >/dev/null
diff -r "$here/six" "$here/old" || wrong "another checkpoint than the one that was named"
code_of tiny "$here/next" --set model.path="$run" --set train.steps=1
[[ $code == 0 ]] || wrong "a run from a damaged one ended with $code: $(cat "$here/err")"
grep -q '"event": "damaged".*passed over.*step-00000012.*taken: .*step-00000006' "$here/next/events.jsonl" || wrong "there is no event"
cp "$here/state.json" "$newest/state.json"

# A wrong byte within a tensor is found when it is read, on any number of ranks.
cp "$newest/model.safetensors" "$here/model.safetensors"
printf '?????' | dd of="$newest/model.safetensors" bs=1 seek=$(($(wc -c <"$newest/model.safetensors") - 99)) conv=notrunc status=none
for command in "export $run --out $here/older" "${evaluate[*]}" "${evaluate[*]} --set ranks=3"; do
    code_of "$MOP" $command
    [[ $code == 0 ]] || wrong "mop $command ended with $code: $(cat "$here/err")"
    grep -q "^mop: warning: 1 newer checkpoint is passed over (.*$newest/model.*); $older is taken instead" "$here/err" ||
        wrong "mop $command does not name the older checkpoint: $(cat "$here/err")"
done
diff -r "$here/six" "$here/older" || wrong "another checkpoint than the one that was named"
cmp <("$MOP" "${evaluate[@]}" 2>/dev/null) <("$MOP" evaluate examples/tiny.yaml --set model.path="$older")
code_of tiny "$here/then" --set model.path="$run" --set train.steps=1
grep -q '"event": "damaged".*passed over.*step-00000012.*taken: .*step-00000006' "$here/then/events.jsonl" || wrong "there is no event"
refuses 3 "$newest/model" evaluate examples/tiny.yaml --set model.path="$newest"
cp "$here/model.safetensors" "$newest/model.safetensors"
rm "$newest/manifest.json"
code_of "$MOP" "${evaluate[@]}"
[[ $code == 0 ]] && grep -q "$older is taken instead" "$here/err" || wrong "without a manifest: $code, $(cat "$here/err")"

# No damage: a file that may not be read (whoever runs the tests as root may read all) and one of another kind.
if [[ $(id -u) != 0 ]]; then
    chmod 0 "$newest/state.json"
    refuses 5 "$newest" "${evaluate[@]}"
    chmod 600 "$newest/state.json"
fi
printf '?' | dd of="$older/config.json" bs=1 seek=20 conv=notrunc status=none
refuses 3 "all 2 checkpoints are damaged, the newest so" "${evaluate[@]}"

# What means no checkpoint.
refuses 3 "this is a file; .*name the directory that it is in" evaluate examples/tiny.yaml --set model.path="$here/new/model.safetensors"
refuses 3 "there is no manifest.json to verify it by.*mop inspect" ckpt verify "$here/new"
refuses 3 "holds runs; .*as in $here/runs/a" inspect "$here/runs"
refuses 3 "holds runs; .*as in $here/runs/a" ckpt verify "$here/runs"
refuses 3 "this is no .safetensors file" inspect README.md
refuses 3 "no checkpoint is there; $here/none" ckpt prune "$here/none" --keep 1
refuses 3 "no checkpoint is there; $here/none" ckpt list "$here/none"
refuses 3 "no checkpoint is there; tests/end_to_end" export tests/end_to_end --out "$here/x"
refuses 3 "two sets of weights are there, model.safetensors.index.json and model.safetensors; .*move the one" \
    evaluate tests/cases/single_and_index/ev.yaml --set model.path=tests/cases/single_and_index/model \
    --set data.path=tests/cases/single_and_index/d.jsonl
absent "$here/x"

# What goes is told.
"$MOP" ckpt prune "$run" --keep 1 >"$here/said"
diff "$here/said" - <<END || wrong "prune says otherwise"
removed $older
1 removed, 1 kept in $run/ckpt
END
"$MOP" ckpt prune "$run" --keep 1 | grep -q "^0 removed, 1 kept" || wrong "a prune that removes nothing does not say so"
