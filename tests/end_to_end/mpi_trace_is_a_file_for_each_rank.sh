#!/usr/bin/env bash
# Under mpirun every rank writes a trace of its own, named after it; and the report is of all ranks.
. tests/end_to_end/common.bash
needs_mpi

"${launch[@]}" 2 "$MOP" train examples/tiny.yaml --run "$here/run" --set mixture.expert=2 --trace "$here/out.json" --trace-steps 2:3 >/dev/null
for rank in 0 1; do
    file=$here/out.rank$rank.json
    [[ $(head -n 1 "$file") == "[" && $(tail -n 1 "$file") == "]" ]] || wrong "$file is not whole"
    [[ $(grep -c '"name": "step [23]"' "$file") == 2 && $(grep -c "\"pid\": $rank," "$file") == $(grep -c '"pid"' "$file") ]] ||
        wrong "$file is not of rank $rank alone, or not of steps 2 and 3"
    [[ $(grep -c '"name": "wait for network"' "$file") -gt 0 ]] || wrong "rank $rank never waited"
done
absent "$here/out.json"
"$MOP" report "$here/run" | grep -q "^experts " || wrong "the report has no experts"

code_of "${launch[@]}" 2 "$MOP" train examples/tiny.yaml --run "$here/none" --trace "$here/none/out.json"
[[ $code == 5 && $(grep -c "^mop: error\[5\]: the trace $here/none/out.rank[01].json cannot be written" "$here/err") == 1 ]] ||
    wrong "exit $code: $(cat "$here/err")"
absent "$here/none"
