#!/usr/bin/env bash
# The measured part of docs/machines.md, out of bench/results/*.jsonl: what `mop doctor` said last of each machine, and
# every step that was predicted and taken there.
#
#     tools/machines_doc.sh            # writes it between its two comment lines
#     tools/machines_doc.sh --check    # says whether that would change anything: exit 1
set -euo pipefail
cd "$(dirname "$0")/.."

page=docs/machines.md
begin='<!-- measured: tools/machines_doc.sh writes from here -->'
end='<!-- to here -->'

tables() {
    find bench/results -name '*.jsonl' | sort | xargs -r cat | awk '
        # The text of "key": "..." in a line.
        function text_of(key,    at, rest) {
            at = index($0, "\"" key "\": \"")
            if (!at) return ""
            rest = substr($0, at + length(key) + 5)
            return substr(rest, 1, index(rest, "\"") - 1)
        }
        # The number of "key": ... in text.
        function number_of(text, key,    at) {
            at = index(text, "\"" key "\": ")
            return at ? substr(text, at + length(key) + 4) + 0 : 0
        }
        function shown(key, x) {
            if (key ~ /flop_per_s$/) return sprintf(x < 1e13 ? "%.1f GFLOP/s" : "%.1f TFLOP/s", x < 1e13 ? x / 1e9 : x / 1e12)
            if (key ~ /parameters_per_s$/) return sprintf("%.3f G/s", x / 1e9)
            if (key ~ /bytes_per_s$/) return sprintf("%.2f GB/s", x / 1e9)
            return sprintf("%.1f us", x * 1e6)
        }
        # One row for each measured figure of this line, in the order in which they were measured.
        function rows_of(    rest, key, figure, rows) {
            rest = substr($0, index($0, "\"measured\": {") + 13)
            while (match(rest, /"[A-Za-z0-9_]+": \{[^}]*\}/)) {
                figure = substr(rest, RSTART, RLENGTH)
                rest = substr(rest, RSTART + RLENGTH)
                key = substr(figure, 2, index(figure, "\": {") - 2)
                if (key ~ /^wire_/ && key !~ /_(64B_s|16MiB_bytes_per_s)$/) continue
                rows = rows sprintf("| `%s` | %s | %s | %s |\n", key, shown(key, number_of(figure, "median")),
                    shown(key, number_of(figure, "min")), shown(key, number_of(figure, "max")))
            }
            return rows
        }
        {
            machine = text_of("machine")
            if (!(machine in known)) { known[machine] = 1; machines[++count] = machine }
            day = substr(text_of("date"), 1, 10)
        }
        index($0, "\"measured\": {") {
            figures[machine] = rows_of()
            said[machine] = "`" text_of("command") "`, " day ", commit " text_of("commit")
        }
        index($0, "\"predicted_s\": ") {
            config = text_of("command"); sub(/.* /, "", config)
            predicted = number_of($0, "predicted_s"); median = number_of($0, "median_s")
            steps[machine] = steps[machine] sprintf("| `%s` | %s, %s | %.4f s | %.4f s | %.4f s | %.2f |\n", config, day,
                text_of("commit"), predicted, median, number_of($0, "fastest_s"), predicted / median)
        }
        END {
            if (!count) print "\nNothing has been measured yet."
            for (i = 1; i <= count; i++) {
                machine = machines[i]
                if (!(machine in figures) && !(machine in steps)) continue
                printf "\n### %s\n", machine
                if (machine in steps)
                    printf "\n| a step of | run | predicted | taken, the median of 7 | the fastest | predicted / median |\n" \
                        "|---|---|---|---|---|---|\n%s", steps[machine]
                if (machine in figures)
                    printf "\n%s:\n\n| figure | median | least | most |\n|---|---|---|---|\n%s", said[machine], figures[machine]
            }
            print ""
        }'
}

wanted=$(awk -v begin="$begin" '{ print } $0 == begin { exit }' "$page"
    tables
    awk -v end="$end" '$0 == end { on = 1 } on' "$page")
if [[ ${1:-} == --check ]]; then
    diff "$page" <(printf '%s\n' "$wanted") >/dev/null && exit 0
    echo "tools/machines_doc.sh: $page is not what bench/results says; run make machines-doc" >&2
    exit 1
fi
grep -qxF "$begin" "$page" && grep -qxF "$end" "$page" || {
    echo "tools/machines_doc.sh: $page lacks the line \"$begin\" or \"$end\"" >&2
    exit 1
}
printf '%s\n' "$wanted" >"$page.new"
mv "$page.new" "$page"
