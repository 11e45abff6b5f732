#!/usr/bin/env bash
# The tables of docs/machines.md are those of bench/results; a result that the page lacks is noticed.
set -euo pipefail

tools/machines_doc.sh --check

here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
mkdir -p "$here/bench" "$here/docs"
cp -r tools "$here"
cp -r bench/results "$here/bench"
cp docs/machines.md "$here/docs"
echo '{"date": "2026-01-02T03:04:05Z", "machine": "a new one", "commit": "abc", "command": "mop doctor --step x.yaml", "exit": 0, "seconds": 9, "figures": {"predicted_s": 3, "median_s": 2, "fastest_s": 1}}' >>"$here/bench/results/cpu.jsonl"
if "$here/tools/machines_doc.sh" --check 2>"$here/said"; then
    echo "a result that is not on the page was not noticed" >&2
    exit 1
fi
grep -q "run make machines-doc" "$here/said"
"$here/tools/machines_doc.sh"
"$here/tools/machines_doc.sh" --check
grep -qxF '| `x.yaml` | 2026-01-02, abc | 3.0000 s | 2.0000 s | 1.0000 s | 1.50 |' "$here/docs/machines.md"
