#!/usr/bin/env bash
# What works and is hardly meant is said in one line each, on the terminal and as an event, and nothing is said of a sound run; the
# banner names what a command line leaves open; the end says what came of it.
. tests/end_to_end/common.bash

# `warns PATTERN FLAG...`: exactly this, besides what it may say of this machine's cores.
warns() {
    local pattern=$1
    shift
    rm -rf "$here/run"
    tiny "$here/run" --set train.steps=2 --set optimizer.warmup=1 "$@" >"$here/out"
    grep "^warning: " "$here/out" | grep -v "of this machine" >"$here/said" || true
    [[ $(wc -l <"$here/said") == 1 ]] || wrong "$*: not one warning: $(cat "$here/out")"
    grep -Eq "^warning: $pattern" "$here/said" || wrong "$*: it says $(cat "$here/said")"
    grep -Eq "\"event\": \"warning\", .*\"text\": \"$pattern" "$here/run/events.jsonl" || wrong "$*: no event"
}

printf 'abc' >"$here/abc.txt"
warns "the data is 3 tokens, less than the 512 of a step" --set data.path="$here/abc.txt"
warns "optimizer.warmup is 2 of 2 steps: the learning rate only rises" --set optimizer.warmup=2
warns "3 of 4 ranks have no sequence" --set ranks=4 --set train.sequences=1 --set train.micro_batches=1
warns "2 of 4 ranks have no sequence" --set ranks=4 --set train.sequences=1 --set train.micro_batches=1 --set mixture.ring=2
warns "train.micro_batches is 5 and no group of ranks has more than 4 sequences" --set ranks=2 --set train.micro_batches=5
rm -r "$here/run"
cores=$(nproc --all)
tiny "$here/run" --set train.steps=1 --set compute.threads=$((cores + 1)) --set optimizer.warmup=0 >"$here/out"
grep -Eq "^warning: 1 rank of $((cores + 1)) threads share $cores core" "$here/out" || wrong "it does not tell of the cores: $(cat "$here/out")"

# A sound run has no warning; each line of its banner fits 80 columns where paths are short.
cd "$here"
cp -r "$OLDPWD/examples" .
[[ $MOP == /* ]] || MOP=$OLDPWD/$MOP
rm -r run
tiny run --set compute.threads=1 >out
grep -q "^warning" out && wrong "a sound run is warned of: $(cat out)"
for text in "mop        olmoe: 96.9 thousand parameters, 43.3 thousand active a token; fp32" "weights    begin at random, by train.seed 1" \
    "tokenizer  bytes \(256 ids\); the model has 259" "data       examples/tiny.jsonl: 5969 tokens" "steps      1 to 12; 1.02 epochs of 11.8 steps" \
    "step       512 tokens: 8 sequences of 64, in 2 micro-batches" "lr         rises over 3 steps to 0.002, then falls linearly to 0.0002" \
    "ranks      1 x 1 thread \([a-z0-9]+ kernels\); memory at most [0-9.]+ MiB a rank" "saves      every 500 steps and at the end, 1.2 MB each; the last 3 stay" \
    "run        run" "done: 12 steps in [0-9]+ (s|min), [0-9]+ tokens/s, loss 5\.[0-9]{4} -> [0-9.]+" "saved      run/ckpt/step-00000012" \
    "next       mop generate run --prompt TEXT"; do
    grep -Eqx -- "$text" out || wrong "the output has no line '$text': $(cat out)"
done
longest=$(sed -n '1,/^run  /p' out | awk '{ if (length > n) n = length } END { print n }')
((longest <= 80)) || wrong "a line of the banner has $longest columns"
grep -Eq '"event": "done", "step": 12, .*12 steps in' run/events.jsonl || wrong "no event tells of the end"

# Weights and tokenizer of another run; a run that goes on; ranks that divide things.
tiny new --set model.path=run --set train.steps=1 --set ranks=2 --set mixture.expert=2 --set optimizer.schedule=constant >out
for text in "weights    begin as those of run/ckpt/step-00000012" "tokenizer  run/ckpt/step-00000012/tokenizer.json \(256 ids\); the model has 259" \
    "divided    dense weights by 2, experts by 2" "lr         rises over 3 steps to 0.002, and stays there"; do
    grep -Eqx -- "$text" out || wrong "the output has no line '$text': $(cat out)"
done
tiny run --set train.steps=13 >out
grep -qx "weights    go on from run/ckpt/step-00000012" out || wrong "it does not say what it goes on from: $(cat out)"
grep -qx "steps      13 to 13; 1.11 epochs of 11.8 steps" out || wrong "it says other steps: $(cat out)"
# What the end tells to type works.
"$MOP" generate run --prompt TEXT >out
"$MOP" evaluate run --set data.path=examples/tiny.jsonl >out
