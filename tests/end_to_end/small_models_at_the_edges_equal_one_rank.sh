# A query that sees one key, a router with one normalised choice, more import slots than there are experts: inputs of
# tests/cases on which layouts once differed, or a run ended with an abort.
source "$(dirname "$0")/common.bash"

case=tests/cases/one_key
"$MOP" verify-layouts $case/settings.yaml --ranks 4 --layouts 6 --set model.config=$case/config.json \
    --set data.path=$case/data.jsonl --set train.steps=4 --set train.sequence_length=16 --set train.sequences=8 \
    --set train.micro_batches=3 --set optimizer.learning_rate=0.003 >"$here/verified" ||
    wrong "layouts differ where a query sees one key: $(grep DIFFER "$here/verified")"
grep -q "layouts agree with one rank within 1e-12" "$here/verified" || wrong "nothing was compared"

case=tests/cases/imports_overflow
imports() { # RUN FLAG...
    local run=$1
    shift
    "$MOP" train $case/settings.yaml --set model.config=$case/config.json --set data.path=$case/data.jsonl \
        --set compute.type=fp64 --set train.steps=1 --set train.sequence_length=1 --set train.sequences=1 \
        "$@" --run "$run" >"$here/out"
}
imports "$here/one"
imports "$here/two" --set ranks=2 --set mixture.dense=1 --set mixture.expert=2 --set mixture.balance_imports=13
diff <(numbers "$here/one") <(numbers "$here/two") || wrong "two ranks with 13 import slots are not one rank"
