#!/usr/bin/env bash
# A run that is stopped by a signal, and continued by the same command, ends with the metrics and the checkpoint of one that was never
# stopped, to the bit; each signal on another number of ranks.
. tests/end_to_end/common.bash

for case in "INT 1" "TERM 2" "USR1 4"; do
    read -r signal ranks <<<"$case"
    options=(--set ranks="$ranks" --set train.steps=80 --set checkpoint.keep=0)
    tiny "$here/whole" "${options[@]}" >/dev/null
    begin "$MOP" train examples/tiny.yaml --run "$here/stopped" "${options[@]}"
    wait_for 10 "$here/stopped"
    kill -s "$signal" "$job"
    ended
    [[ $code == 75 ]] || wrong "SIG$signal on $ranks ranks ended with $code: $(cat "$here/err")"
    grep -Eq "^stopped: after step [0-9]+; the same command continues" "$here/out" || wrong "SIG$signal: it does not say how to continue"
    step=$(tail -n 1 "$here/stopped/metrics.jsonl" | sed -E 's/^\{"step": ([0-9]+),.*/\1/')
    [[ -d $here/stopped/ckpt/$(printf 'step-%08d' "$step") ]] || wrong "there is no checkpoint of step $step, the last one"
    grep -q '"event": "stopped", "step": '"$step," "$here/stopped/events.jsonl" || wrong "events.jsonl does not tell of the stop"

    tiny "$here/stopped" "${options[@]}" >"$here/out"
    grep -q "^resume: from $here/stopped/ckpt/step-" "$here/out" || wrong "it does not say from where it resumes"
    grep -q "^step $((step + 1))/80 " "$here/out" || wrong "it does not go on with step $((step + 1))"
    same_bits "$here/whole" "$here/stopped"
    rm -r "$here/whole" "$here/stopped"
done
