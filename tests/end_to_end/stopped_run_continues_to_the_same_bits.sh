#!/usr/bin/env bash
# A run that is stopped by each of the three signals, and continued by the same command each time, ends with the metrics and the
# checkpoint of one that was never stopped, to the bit.
. tests/end_to_end/common.bash

options=(--set train.steps=120 --set optimizer.schedule=constant --set checkpoint.keep=0)

for ranks in 1 2 4; do
    tiny "$here/whole" "${options[@]}" --set ranks=$ranks >/dev/null
    step=15
    for signal in INT TERM USR1; do
        begin "$MOP" train examples/tiny.yaml --run "$here/stopped" "${options[@]}" --set ranks=$ranks
        wait_for $step "$here/stopped"
        kill -s $signal "$job"
        ended
        [[ $code == 75 ]] || wrong "SIG$signal on $ranks ranks ended with $code: $(cat "$here/err")"
        grep -Eq "^stopped: after step [0-9]+; the same command continues" "$here/out" || wrong "SIG$signal: it does not say how to continue"
        last=$(tail -n 1 "$here/stopped/metrics.jsonl" | sed -E 's/^\{"step": ([0-9]+),.*/\1/')
        [[ -d $here/stopped/ckpt/$(printf 'step-%08d' "$last") ]] || wrong "there is no checkpoint of step $last, the last one"
        step=$((last + 15))
    done
    tiny "$here/stopped" "${options[@]}" --set ranks=$ranks >"$here/out"
    grep -q "^resume: from $here/stopped/ckpt/step-" "$here/out" || wrong "it does not say from where it resumes"
    same_bits "$here/whole" "$here/stopped"
    [[ $(grep -c '"event": "stopped"' "$here/stopped/events.jsonl") == 3 ]] || wrong "events.jsonl does not tell of three stops"
    rm -r "$here/whole" "$here/stopped"
done
