#!/usr/bin/env bash
# On a terminal the progress line is rewritten in place and never wraps, at any width.
. tests/end_to_end/common.bash
command -v script >/dev/null || skip "there is no script(1)"

for columns in 40 80 200; do
    rm -rf "$here/run"
    script -qefc "stty cols $columns && exec '$MOP' train examples/tiny.yaml --run '$here/run' --set train.steps=30 --set optimizer.learning_rate=1e-5" /dev/null \
        </dev/null >"$here/out" || wrong "it failed at $columns columns: $(cat "$here/out")"
    tr '\r' '\n' <"$here/out" | sed -n 's/^\x1b\[K//p' >"$here/lines"
    [[ $(grep -c "^step [0-9]*/30  loss" "$here/lines") -ge 2 ]] || wrong "there are no progress lines: $(cat -v "$here/out")"
    longest=$(awk '{ if (length > n) n = length } END { print n }' "$here/lines")
    ((longest < columns)) || wrong "at $columns columns a line has $longest: $(cat "$here/lines")"
    ((longest >= 22)) || wrong "at $columns columns the longest line has $longest: $(cat "$here/lines")"
done
grep -q "balance .*norm .*lr .*tokens/s .*left$" "$here/lines" || wrong "a wide terminal does not show all: $(cat "$here/lines")"
