#!/usr/bin/env bash
# After a first signal a run finishes its step and saves; a second one ends it at once, without a checkpoint.
. tests/end_to_end/common.bash

# Steps of many seconds, so that the second signal comes within the first one's.
begin "$MOP" train examples/tiny.yaml --run "$here/run" --set device=cpu:plain --set train.sequences=256 --set train.sequence_length=128 --set train.steps=2
said() {
    until grep -q "$1" "$here/out" "$here/err"; do
        sleep 0.02
        [[ -n $(jobs -pr) ]] || wrong "the run ended before it said '$1': $(cat "$here/err")"
    done
}
said "^run "
kill -s INT "$job"
said "a second signal ends at once"
start=$SECONDS
kill -s INT "$job"
ended
[[ $code == 130 ]] || wrong "it ended with $code, not 130"
((SECONDS - start < 10)) || wrong "it took $((SECONDS - start)) s"
absent "$here/run/ckpt"
