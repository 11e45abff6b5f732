#!/usr/bin/env bash
# No document of the case is longer than 49 tokens: whatever the sequence length, the order of the documents, the ranks and the
# sequences of a step, the loss is that of the documents alone. Bits per byte of a uniform model over 256 ids are 8.
. tests/end_to_end/common.bash

field() { # KEY FILE
    sed -E "s/.*\"$1\": ([^,}]*).*/\1/" "$2"
}
evaluate() { # CASE DATA FLAG...
    local case=tests/cases/$1 data=$2
    shift 2
    "$MOP" evaluate "$case/ev.yaml" --set model.path="$case/model" --set data.path="$case/$data" --set compute.type=fp64 "$@" >"$here/out"
}

evaluate evaluation_depends_on_cuts d.jsonl --set train.sequence_length=512
first=$(field loss "$here/out")
close "$first" 6.0336043168 1e-8 # transformers, a document at a time; its norms and rotations are of float32
for length in 51 64 100 128 200 512; do
    for data in d rev; do
        evaluate evaluation_depends_on_cuts $data.jsonl --set train.sequence_length=$length
        close "$(field loss "$here/out")" "$first" 1e-12
    done
done
evaluate evaluation_depends_on_cuts rev.jsonl --set train.sequence_length=51 --set ranks=3 --set train.sequences=7
close "$(field loss "$here/out")" "$first" 1e-12
evaluate evaluation_depends_on_cuts d.jsonl --set train.sequence_length=64 --set ranks=4 --set train.sequences=3 --set mixture.vocabulary=2
close "$(field loss "$here/out")" "$first" 1e-12
[[ $(field bits_per_byte "$here/out") == null ]] || wrong "ids have no bytes that are known: $(cat "$here/out")"

for data in u1 u2byte u10byte u1000byte; do
    evaluate bits_per_byte $data.jsonl
    close "$(field bits_per_byte "$here/out")" 8 1e-12
done
