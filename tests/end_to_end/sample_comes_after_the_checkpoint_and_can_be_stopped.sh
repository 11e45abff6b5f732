#!/usr/bin/env bash
# A checkpoint that is due is on the disk before a sample is drawn; a signal during a sample is obeyed behind the next token, on any
# number of ranks, and loses nothing.
. tests/end_to_end/common.bash

options=(--set train.steps=6 --set train.sample_every=3 --set train.sample_tokens=1000000 --set train.sample_prompt=Hello --set optimizer.schedule=constant)

saved() { # CHECKPOINT: waits for it
    local start=$SECONDS
    until [[ -d $1 ]]; do
        sleep 0.02
        [[ -n $(jobs -pr) ]] || wrong "the run ended without a checkpoint: $(cat "$here/err")"
        ((SECONDS - start < 30)) || wrong "a sample is drawn, and there is no checkpoint"
    done
}

# A process that dies while it draws has saved what was due.
begin "$MOP" train examples/tiny.yaml --run "$here/killed" "${options[@]}" --set checkpoint.every=3
saved "$here/killed/ckpt/step-00000003"
[[ $(wc -l <"$here/killed/metrics.jsonl") == 3 ]] || wrong "the checkpoint came after the sample"
kill -9 "$job"
ended
"$MOP" ckpt verify "$here/killed" >/dev/null

for ranks in 1 3; do
    # No checkpoint is due: the stop makes one. The part of the sample that had come is shown.
    begin "$MOP" train examples/tiny.yaml --run "$here/stopped" "${options[@]}" --set ranks=$ranks
    wait_for 3 "$here/stopped"
    sleep 0.3
    start=$SECONDS
    kill -s INT "$job"
    ended
    [[ $code == 75 ]] || wrong "a signal in a sample on $ranks ranks: ended with $code, $(cat "$here/err")"
    ((SECONDS - start < 8)) || wrong "it took $((SECONDS - start)) s"
    [[ $(ls "$here/stopped/ckpt") == step-00000003 ]] || wrong "it saved $(ls "$here/stopped/ckpt")"
    grep -q "^Hello" "$here/out" || wrong "the sample is not shown: $(cat "$here/out")"
    grep -q "^stopped: after step 3; the same command continues" "$here/out" || wrong "it does not say that it stopped: $(cat "$here/out")"

    # The same command goes on, and the steps are those of a run without samples.
    tiny "$here/stopped" "${options[@]}" --set ranks=$ranks --set train.sample_every=-1 >/dev/null
    tiny "$here/whole" "${options[@]}" --set ranks=$ranks --set train.sample_every=-1 >/dev/null
    same_bits "$here/whole" "$here/stopped"
    rm -r "$here/whole" "$here/stopped"
done

# After the last step all is done, and a stopped sample changes nothing about that.
begin "$MOP" train examples/tiny.yaml --run "$here/last" "${options[@]}" --set train.sample_every=0
saved "$here/last/ckpt/step-00000006"
sleep 0.2
kill -s TERM "$job"
ended
[[ $code == 0 ]] || wrong "a signal in the last sample: ended with $code, $(cat "$here/err")"
grep -q "^done: 6 steps in" "$here/out" || wrong "it does not say that it is done: $(cat "$here/out")"
