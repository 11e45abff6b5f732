#!/usr/bin/env bash
# On a machine with a GPU: builds with CUDA, runs the device tests and `mop doctor`, and appends a line for each to
# DIR/gpu.jsonl; what they said goes beside it. Made for one short run on a borrowed GPU: a few minutes on 16 cores,
# and what was measured is on disk before the next thing begins. bench/results/README.md says how to read it.
#
#     bench/gpu.sh [DIR] [COMMIT]      # bench/results, and the commit of the working tree, where nothing is said
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-bench/results}
commit=${2:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
date=$(date -u +%Y-%m-%dT%H:%M:%SZ)
stem=$out/gpu-${date//:/}
mkdir -p "$out"

name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || true
[[ -n $name ]] || { echo "bench/gpu.sh: nvidia-smi finds no GPU here: nothing to measure" >&2; exit 1; }
case $name in
    *H200*) row=h200x1 ;;
    *A100*) row=a100x1 ;;
    *) row=h100x1 ;;
esac

source bench/record.bash

# Where mop's own libraries are missing, what was brought along runs: build-cuda/mop, its test, and libraries in
# build-cuda/lib. Nothing is installed: a borrowed machine may have no way out, and waiting for that costs its time.
if ! { cmake --preset cuda && cmake --build --preset cuda --target mop test_device -j"$(nproc)"; }; then
    [[ -x build-cuda/mop && -x build-cuda/tests/test_device ]] || {
        echo "bench/gpu.sh: cannot build here, and build-cuda is empty" >&2
        exit 1
    }
    echo "bench/gpu.sh: cannot build here: running build-cuda as it is"
fi

# Libraries of CUDA that the loader would not find, wherever a package put them.
paths=$PWD/build-cuda/lib
for library in libcublasLt.so.13 libcudnn.so.9 libnccl.so.2; do
    ldconfig -p | grep -q "$library" && continue
    found=$(find /usr /opt /root /home -name "$library" -print -quit 2>/dev/null) || true
    [[ -z $found ]] || paths=$paths:$(dirname "$found")
done
export LD_LIBRARY_PATH=$paths${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
nvidia-smi | tee "$stem-machine.txt"

measure device 60 build-cuda/tests/test_device
passed=$(grep -c '^\[       OK \] cuda:' "$stem-device.txt") || true
failed=$(grep -c '^\[  FAILED  \] cuda:' "$stem-device.txt") || true
figures="{\"cuda_passed\": $passed, \"cuda_failed_lines\": $failed}"
line "$out/gpu.jsonl" "build-cuda/tests/test_device" "$code" "$took" "$figures"

measure doctor 240 build-cuda/mop doctor --out "$stem.json" --compare "$row" --disk "$out"
line "$out/gpu.jsonl" "build-cuda/mop doctor --compare $row" "$code" "$took" "$(one_line "$stem.json")"

if command -v compute-sanitizer >/dev/null; then
    measure sanitizer 120 compute-sanitizer --error-exitcode 9 build-cuda/tests/test_device
    line "$out/gpu.jsonl" "compute-sanitizer build-cuda/tests/test_device" "$code" "$took" "null"
fi
echo "bench/gpu.sh: $SECONDS s, worst exit $worst; $out/gpu.jsonl has the figures"
exit "$worst"
