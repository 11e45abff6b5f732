#!/usr/bin/env bash
# A disk that fails while a command looks for something ends it with exit 5, and nothing is begun anew, cut or left out as if it
# were not there.
. tests/end_to_end/common.bash
: "${PRELOAD_FAULTS:?is the library that makes calls fail, as in build/tests/libpreload_faults.so}"
ldd "$MOP" | grep -q "lib[at]san" && skip "a sanitizer comes before any other library"

# `failing CALL PATH PATTERN ARGUMENT...`: with this call failing on such paths, mop ends with exit 5 and says so.
failing() {
    local call=$1 path=$2 pattern=$3
    shift 3
    code_of env LD_PRELOAD="$PRELOAD_FAULTS" FAULT_CALL="$call" FAULT_PATH="$path" "$MOP" "$@"
    [[ $code == 5 ]] || wrong "$call of $path failed, and mop $* ended with $code: $(cat "$here/err")"
    grep -Eq "^mop: error\[5\]: .*$pattern" "$here/err" || wrong "$call of $path: mop $* does not say '$pattern': $(cat "$here/err")"
}

run=$here/run
train=(train examples/tiny.yaml --run "$run" --set checkpoint.every=6 --set checkpoint.keep=0 --set optimizer.schedule=constant)
"$MOP" "${train[@]}" >/dev/null
cp -r "$run" "$here/before"
unharmed() {
    diff -r "$here/before" "$run" --exclude=events.jsonl --exclude=config.yaml || wrong "$1 changed the run"
}

further=("${train[@]}" --set train.steps=13)
failing readdir "$run/ckpt" "cannot list a directory: Input/output error; $run/ckpt" "${further[@]}"
unharmed "a list that cannot be read"
failing stat "$run/metrics.jsonl" "metrics.jsonl" "${further[@]}"
unharmed "a file of metrics that cannot be looked at"
failing stat "$run/config.yaml" "config.yaml" "${further[@]}" --set train.seed=5
unharmed "settings that cannot be looked at"
failing stat step-00000012/manifest.json "manifest.json" evaluate examples/tiny.yaml --set model.path="$run"
failing read step-00000012/manifest.json "manifest.json" evaluate examples/tiny.yaml --set model.path="$run"
failing open step-00000012/state.json "state.json" export "$run" --out "$here/new"
failing stat tokenizer.json "tokenizer.json" generate examples/tiny.yaml --set model.path="$run" --prompt a --tokens 1
failing stat tokenizer.json "tokenizer.json" export "$run" --out "$here/new"
failing stat model.safetensors.index.json "index.json" inspect "$run/ckpt/step-00000012"
failing readdir "$run/ckpt" "$run/ckpt" ckpt prune "$run" --keep 1
failing readdir "$run/ckpt" "$run/ckpt" ckpt list "$run"
unharmed "a command that failed"
failing stat "$here/new" "$here/new" export "$run" --out "$here/new"
absent "$here/new"
"$MOP" data examples/tiny.jsonl --out "$here/tiny.tokens" >/dev/null
failing stat "$here/tiny.tokens" "tiny.tokens" data examples/tiny.jsonl --out "$here/tiny.tokens"
