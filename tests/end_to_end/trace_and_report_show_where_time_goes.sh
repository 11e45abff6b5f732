#!/usr/bin/env bash
# --trace writes a timeline, whole also when the run is stopped, and changes nothing; `mop report` says where the time of a run goes.
# What is asked for in a wrong way is one clear line, and makes nothing.
. tests/end_to_end/common.bash

trace=$here/out.json
# Every line between the brackets is an event; each but the last ends with a comma.
whole_trace() {
    [[ $(head -n 1 "$1") == "[" && $(tail -n 1 "$1") == "]" ]] || wrong "$1 is not an array: $(head -n 1 "$1") ... $(tail -n 1 "$1")"
    local body
    body=$(sed '1d; $d' "$1")
    grep -Evx '\{.*\},?' <<<"$body" && wrong "$1 has lines that are no events"
    [[ $(grep -vc ',$' <<<"$body") == 1 && $body == *"}" ]] || wrong "$1 has commas in wrong places"
}
# `events PATTERN`: how many events of the trace are like this.
events() {
    grep -Ec -- "$1" "$trace" || true
}

# Two steps of two ranks; the same bits as without.
tiny "$here/traced" --set ranks=2 --set mixture.expert=2 --trace "$trace" --trace-steps 3:4 >/dev/null
tiny "$here/plain" --set ranks=2 --set mixture.expert=2 >/dev/null
same_bits "$here/traced" "$here/plain"
whole_trace "$trace"
for rank in 0 1; do
    for text in '"name": "process_name", "args": \{"name": "rank '$rank'"\}' '"tid": 1, "name": "thread_name", "args": \{"name": "compute"\}' \
        '"tid": 2, "name": "thread_name", "args": \{"name": "network"\}' '"name": "step 3"' '"name": "step 4"'; do
        [[ $(events "\"pid\": $rank, .*$text") == 1 ]] || wrong "not one event of rank $rank like $text: $(events "\"pid\": $rank, .*$text")"
    done
    [[ $(events "\"pid\": $rank, \"tid\": 1, .*\"cat\": \"op\", .*\"component\": \"attention\", \"step\": 4, \"layer\": 2\}") -gt 0 ]] ||
        wrong "rank $rank has no op of attention"
    [[ $(events "\"pid\": $rank, \"tid\": 2, .*\"cat\": \"collective\", .*\"component\": \"experts\", .*\"group\": \"expert\", \"sent\": [0-9]+, \"received\": [0-9]+\}") -gt 0 ]] ||
        wrong "rank $rank has no collective of the experts"
done
[[ $(events '"step": [0-9]+') == $(events '"step": [34][,}]') ]] || wrong "other steps than 3 and 4 were traced"

# A run that is stopped leaves a whole file.
begin "$MOP" train examples/tiny.yaml --run "$here/stopped" --set ranks=2 --set train.steps=2000 --trace "$trace"
wait_for 5 "$here/stopped"
kill -s INT "$job"
ended
[[ $code == 75 ]] || wrong "it ended with $code: $(cat "$here/err")"
whole_trace "$trace"
[[ $(events '"name": "step 5"') == 2 ]] || wrong "the trace of a stopped run has no step 5"

# Nothing to trace is said.
"$MOP" train examples/tiny.yaml --run "$here/plain" --set ranks=2 --set mixture.expert=2 --trace "$trace" >/dev/null 2>"$here/err"
grep -q "^mop: no step was traced; $trace holds none$" "$here/err" || wrong "a trace without steps is not told of: $(cat "$here/err")"
[[ $(tr -d '\n' <"$trace") == "[]" ]] || wrong "it is $(cat "$trace")"

# The prediction: the second step, all ranks, from 0 on; the same bits every time.
"$MOP" plan examples/tiny.yaml --set ranks=4 --trace "$trace" >"$here/listed"
whole_trace "$trace"
"$MOP" plan examples/tiny.yaml --set ranks=4 --trace "$here/again.json" | cmp - "$here/listed" || wrong "the plan's list differs"
cmp "$trace" "$here/again.json" || wrong "the plan's trace differs"
[[ $(events '"tid": 0, "ts": 0\.000, "dur": [0-9.]+, "cat": "step", "name": "step 2"') == 4 ]] || wrong "not four ranks from 0 on"
longest=$(sed -nE 's/.*"name": "step 2".*//; s/^\{"ph": "X", "pid": 0, "tid": 1, "ts": ([0-9.]+), "dur": ([0-9.]+),.*/\1 \2/p' "$trace" | awk '{ e = $1 + $2; if (e > most) most = e } END { printf "%.3f", most / 1e6 }')
grep -q "^predicted $longest s a step" "$here/listed" || wrong "the trace ends at $longest s, the plan says: $(grep predicted "$here/listed")"

# A report of a run, for people and for scripts; of one that is being written.
"$MOP" report "$here/traced" >"$here/report"
for text in "^run     $here/traced$" "^steps   12, 1 to 12; the first is left out" "^step    [0-9.]+ s, mean [0-9.]+$" "^tokens  [0-9.]+ a second$" \
    "^loss    5\.[0-9]+ -> [0-9.]+$" "^memory  [0-9.]+ MiB at most" "^component +compute s +network s +exposed s +exposed " \
    "^attention +[0-9.]+ +0\.000000 +0\.000000 +0\.0 %$" "^experts +([0-9.]+ +){4}%$" "^total +([0-9.]+ +){4}%$" "^host +[0-9.]+ +[0-9.]+ % "; do
    grep -Eq -- "$text" "$here/report" || wrong "the report has no '$text': $(cat "$here/report")"
done
"$MOP" report "$here/traced" --json >"$here/report"
[[ $(wc -l <"$here/report") == 1 ]] || wrong "--json is not one line"
for text in '^\{"run": ".*/traced", "steps": 12, "first_step": 1, "last_step": 12, "seconds_median": [0-9.e-]+, ' \
    '"experts": \{"compute_s": [0-9.e-]+, "network_s": [0-9.e-]+, "exposed_s": [0-9.e-]+, "exposed_share": [0-9.e-]+\}' '"total": \{' '"host_s": [0-9.e-]+\}$'; do
    grep -Eq -- "$text" "$here/report" || wrong "the report has no '$text': $(cat "$here/report")"
done

# Medians and means of known numbers, through the halving of a long run, and a line that is being written.
mkdir "$here/long"
times='{"attention": 0.5, "dense": 0, "router": 0, "experts": 0.25, "vocabulary": 0, "optimizer": 0, "other": 0}'
awk -v times="$times" 'BEGIN { for (i = 1; i <= 10001; i++)
    printf "{\"step\": %d, \"loss\": %s, \"seconds\": %d, \"tokens_per_s\": 7, \"memory_bytes\": %d, \"compute_s\": %s, \"network_s\": %s, \"exposed_s\": %s}\n",
        i, i == 10001 ? "null" : 3, i == 1 ? 99999 : 1 + i % 3, i * 1048576 / 10001, times, times, times }' >"$here/long/metrics.jsonl"
printf '{"step": 10002, "lo' >>"$here/long/metrics.jsonl"
"$MOP" report "$here/long" >"$here/report"
for text in "^steps   10001, 1 to 10001;" "^step    2\.000000 s, mean 2\.000" "^tokens  7\.0 a second" "^loss    3\.0000 -> not finite" "^memory  1\.0 MiB" \
    "median over every 4th step" "^attention +0\.500000 +0\.500000 +0\.500000 +25\.0 %$" "^total +0\.750000 +0\.750000 +0\.750000 +37\.5 %$"; do
    grep -Eq -- "$text" "$here/report" || wrong "the long report has no '$text': $(cat "$here/report")"
done

# Wrong use.
mkdir "$here/empty"
: >"$here/empty/metrics.jsonl"
refuses 2 "report needs a run's directory" report
refuses 2 "\-\-jsn is not understood; use mop report RUN" report "$here/traced" --jsn
refuses 2 "is not understood" report "$here/traced" "$here/plain"
refuses 3 "$here/nothing/metrics.jsonl: cannot open the metrics of a run: No such file" report "$here/nothing"
refuses 3 "no step is written there yet" report "$here/empty"
cp "$here/traced/metrics.jsonl" "$here/empty"
damage() { # LINE SED: of a run's metrics
    sed "$1$2" "$here/traced/metrics.jsonl" >"$here/empty/metrics.jsonl"
}
damage 5 's/.$//'
refuses 3 "not valid JSON.*metrics.jsonl, line 5" report "$here/empty"
damage 7 's/"network_s"/"network"/'
refuses 3 "there is no \"network_s\".*metrics.jsonl, line 7" report "$here/empty"
damage 2 's/"seconds": [0-9.]*/"seconds": "long"/'
refuses 3 "\"seconds\" is .*a number is expected.*metrics.jsonl, line 2" report "$here/empty"
damage 4 's/"memory_bytes": [0-9]*/"memory_bytes": 1e300/'
refuses 3 "\"memory_bytes\" is 1e\+300, which no run writes.*metrics.jsonl, line 4" report "$here/empty"
damage 3 "s/.*/$(head -c 70000 /dev/zero | tr '\0' 9)/"
refuses 3 "no object of metrics.*metrics.jsonl, line 3" report "$here/empty"

train=(train examples/tiny.yaml --run "$here/none")
refuses 2 "\-\-trace-steps is \"4:2\"; it must be FIRST:LAST" "${train[@]}" --trace "$here/none.json" --trace-steps 4:2
refuses 2 "add --trace FILE" "${train[@]}" --trace-steps 1:2
refuses 2 "unknown flag --trace-steps; plan takes --set, --trace" plan examples/tiny.yaml --trace-steps 1:2
refuses 2 "unknown flag --trace; evaluate takes --set" evaluate examples/tiny.yaml --trace "$here/none.json"
refuses 5 "the trace $here/none/out.json cannot be written: No such file" "${train[@]}" --set ranks=2 --trace "$here/none/out.json"
refuses 5 "the trace $here cannot be written: Is a directory" plan examples/tiny.yaml --trace "$here"
refuses 3 "No such file" "${train[@]}" --set data.path="$here/nothing" --trace "$here/none.json"
absent "$here/none" "$here/none.json"

# A disk that fills up ends the run in words; what was written before stays.
full() (
    trap '' XFSZ
    ulimit -f 300
    "$MOP" "${train[@]}" --set train.sample_every=-1 --trace "$here/none.json"
)
code_of full
[[ $code == 5 ]] || wrong "a trace that does not fit ends with $code: $(cat "$here/err")"
grep -Eq "^mop: error\[5\]: the trace $here/none.json cannot be written: File too large" "$here/err" || wrong "it says $(cat "$here/err")"
