#!/usr/bin/env bash
# Whoever takes the run directory first has it, from before anything in it is read or cleaned: another start of the same command is
# refused, however far it or the first has come, and harms nothing. A start that fails leaves no directory behind.
. tests/end_to_end/common.bash

run=$here/runs/deep/run
busy="another process is training in $run; let it end, or choose another directory with --run"

# The first is held while it opens its ranks: it waits for a reader of a pipe, where it would write its routing. It has not taken
# the directory yet, so the second start trains. When the first goes on, what looks like a leftover is the second's save.
mkfifo "$here/pipe.0"
"$MOP" train examples/tiny.yaml --run "$run" --set sim.record="$here/pipe" >"$here/held" 2>"$here/held.err" &
held=$!
sleep 0.5
begin "$MOP" train examples/tiny.yaml --run "$run" --set train.steps=100000 --set checkpoint.every=1
wait_for 3 "$run"
saving=$run/ckpt/step-00099999.tmp-0123456789abcdef
mkdir "$saving"
cat "$here/pipe.0" >/dev/null &
code=0
wait $held || code=$?
[[ $code == 2 ]] && grep -q "$busy" "$here/held.err" || wrong "the start that was held ended with $code: $(cat "$here/held.err")"
[[ -d $saving ]] || wrong "it has cleaned what the other was writing"
kill -s INT "$job"
ended
[[ $code == 75 ]] || wrong "the run ended with $code: $(cat "$here/err")"
"$MOP" ckpt verify "$run" >/dev/null
rm -r "$here/runs"

# Many starts at once: one trains, whoever it is; the others are refused, or find that it is done.
for round in 1 2 3; do
    starts=()
    for i in 1 2 3 4; do
        tiny "$run" --set checkpoint.every=1 --set train.steps=8 >"$here/out.$i" 2>"$here/err.$i" &
        starts+=($!)
    done
    for i in 1 2 3 4; do
        code=0
        wait "${starts[i - 1]}" || code=$?
        [[ $code == 0 ]] || { [[ $code == 2 ]] && grep -q "$busy" "$here/err.$i"; } ||
            wrong "start $i of round $round ended with $code: $(cat "$here/err.$i")"
    done
    [[ $(grep -l "^step 8/8 " "$here"/out.? | wc -l) == 1 ]] || wrong "not one start has trained"
    [[ $(sed -E 's/^\{"step": ([0-9]+),.*/\1/' "$run/metrics.jsonl") == "$(seq 8)" ]] || wrong "the steps are not 1 to 8"
    "$MOP" ckpt verify "$run" >/dev/null
    rm -r "$here/runs"
done

# While it trains, and saves at every step.
begin "$MOP" train examples/tiny.yaml --run "$run" --set train.steps=100000 --set checkpoint.every=1 --set optimizer.schedule=constant
wait_for 2 "$run"
mv "$here/err" "$here/first.err"
for again in 1 2 3 4 5; do refuses 2 "$busy" train examples/tiny.yaml --run "$run" --set train.steps=100000; done
kill -s INT "$job"
ended
[[ $code == 75 ]] || wrong "the first run ended with $code: $(cat "$here/first.err")"
"$MOP" ckpt verify "$run" >/dev/null
rm -r "$here/runs"

# A start that is refused behind the claim: nothing that it made stays; what was there before does.
mkdir "$here/empty"
cp examples/tiny.json "$here/empty/config.json" # a model without weights
refuses 3 "$here/empty" train examples/tiny.yaml --run "$run" --set model.path="$here/empty"
absent "$here/runs"
mkdir -p "$here/runs/deep"
refuses 3 "$here/empty" train examples/tiny.yaml --run "$here/runs//deep/run/" --set model.path="$here/empty"
absent "$run"
[[ -d $here/runs/deep ]] || wrong "a directory that was there before is gone"

# A path in which files would not find room.
refuses 2 "the path of the run directory has 4[0-9]{3} bytes" train examples/tiny.yaml --run "$(printf 'a/%.0s' {1..2000})"
