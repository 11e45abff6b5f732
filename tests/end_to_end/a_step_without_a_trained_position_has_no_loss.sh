#!/usr/bin/env bash
# A step of which no position is trained has no loss: null in the metrics and the report, "-" for people; every other step has one.
. tests/end_to_end/common.bash

cd tests/cases/no_trained_position
mop=$OLDPWD/$MOP
[[ $MOP == /* ]] && mop=$MOP
for steps in 3 4; do # the order of the documents is the seed's: both kinds come first and last in one of these
    "$mop" train train.yaml --set model.path=model --set train.steps=$steps --set train.seed=$steps --run "$here/run$steps" >"$here/out"
    none=$(grep -c '"tokens": 0,' "$here/run$steps/metrics.jsonl") || wrong "every step has a trained position"
    [[ $(grep -c '"loss": null, .*"tokens": 0,' "$here/run$steps/metrics.jsonl") == "$none" ]] || wrong "a step without a trained position has a loss"
    [[ $(grep -c '"loss": null' "$here/run$steps/metrics.jsonl") == "$none" ]] || wrong "a step with a trained position has no loss"
    while read -r step tokens; do
        [[ $tokens != 0 ]] || expected=-
        [[ $tokens == 0 ]] || expected='[0-9]+\.[0-9]{4}'
        shown[$step]=$expected
    done < <(sed -nE 's/^\{"step": ([0-9]+),.*"tokens": ([0-9]+),.*/\1 \2/p' "$here/run$steps/metrics.jsonl")
    for step in 1 $steps; do
        grep -Eq "^step $step/$steps  loss ${shown[$step]}  balance" "$here/out" || wrong "step $step does not show ${shown[$step]}: $(cat "$here/out")"
    done
    grep -Eq "^initial loss ${shown[1]}; a random guess" "$here/out" || wrong "the initial loss is not ${shown[1]}: $(cat "$here/out")"
    "$mop" report "$here/run$steps" >"$here/report"
    grep -Eqx "loss    ${shown[1]} -> ${shown[$steps]}" "$here/report" || wrong "the report does not say ${shown[1]} -> ${shown[$steps]}: $(cat "$here/report")"
    "$mop" report "$here/run$steps" --json >"$here/report"
    for at in "first 1" "last $steps"; do
        read -r which step <<<"$at"
        value=$(sed -nE "s/.*\"loss_$which\": ([^,]*),.*/\1/p" "$here/report")
        [[ ${shown[$step]} != - || $value == null ]] || wrong "loss_$which is $value"
        [[ ${shown[$step]} == - || $value =~ ^[0-9.]+$ ]] || wrong "loss_$which is $value"
    done
done
grep -Eqi '[^a-z]nan' "$here/out" && wrong "it says nan: $(cat "$here/out")"
exit 0
