#!/usr/bin/env bash
# Runs `mop doctor` once for each CONFIG, with a step of it as predicted and as taken, and appends two lines for each to
# bench/results/cpu.jsonl: the machine, and the step. About a minute a CONFIG, on a machine that does nothing else.
#
#     bench/cpu.sh [CONFIG...]      # examples/bible.yaml and examples/tiny.yaml where nothing is said
set -euo pipefail
cd "$(dirname "$0")/.."

out=bench/results
commit=$(git describe --always 2>/dev/null || echo unknown)
git diff --quiet HEAD -- . ':!bench/results' ':!docs' 2>/dev/null || commit=$commit-dirty # results change nothing
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
source bench/record.bash

# `row WHAT`: predicted and measured seconds of that row of doctor's table.
row() {
    awk -v what="  $1 " 'index($0, what) == 1 { print $(NF - 4), $(NF - 2) }' "$stem-doctor.txt"
}

(($#)) || set -- examples/bible.yaml examples/tiny.yaml
for config in "$@"; do
    date=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    stem=$scratch/$((SECONDS))-$(basename "$config" .yaml)
    measure doctor 180 build/mop doctor --out "$stem.json" --disk "$out" --step "$config"
    name=$(sed -n 's/^  "name": "\(.*\)",$/\1/p' "$stem.json" 2>/dev/null) || true
    name=${name:-unknown}
    line "$out/cpu.jsonl" "mop doctor --out FILE" "$code" "$took" "$(one_line "$stem.json")"
    read -r predicted median <<<"$(row "step, the median")" || true
    read -r _ fastest <<<"$(row "step, the fastest")" || true
    figures=null
    [[ -z $median ]] || figures="{\"predicted_s\": $predicted, \"median_s\": $median, \"fastest_s\": $fastest}"
    line "$out/cpu.jsonl" "mop doctor --step $config" "$code" "$took" "$figures"
done
echo "bench/cpu.sh: $SECONDS s, worst exit $worst; $out/cpu.jsonl has the figures, \`make machines-doc\` shows them"
exit "$worst"
