#!/usr/bin/env bash
# A run's directory stands for its settings: trained further, evaluated, continued, planned; a checkpoint or a Hugging Face
# directory for its weights. All of it from any directory, since paths in a file start at that file.
. tests/end_to_end/common.bash
program=$(realpath "$MOP")

# A project of its own: paths in its file start there.
mkdir -p "$here/project/models" "$here/elsewhere"
cp examples/tiny.json "$here/project/models/shape.json"
cp examples/tiny.jsonl "$here/project/text.jsonl"
sed 's/tiny.json$/models\/shape.json/; s/tiny.jsonl/text.jsonl/' examples/tiny.yaml >"$here/project/small.yaml"
cd "$here/elsewhere"
"$program" train ../project/small.yaml --run run --set train.steps=3 >/dev/null
checkpoint=run/ckpt/step-00000003

# From elsewhere again, each in its short form and in its long one.
cd "$here"
# What is measured; behind it stand paths, as they were given.
measured() {
    "$program" evaluate "$@" | sed 's/, "model":.*//'
}
short=$(measured elsewhere/run)
[[ $short == *bits_per_byte* ]] || wrong "evaluate RUN gives $short"
[[ $short == "$(measured project/small.yaml --set model.path="elsewhere/$checkpoint")" ]] || wrong "evaluate RUN gives $short"
[[ $short == "$(measured elsewhere/run/)" ]] || wrong "evaluate RUN/ differs"
[[ $short == "$(measured "elsewhere/$checkpoint")" ]] || wrong "evaluate CHECKPOINT differs"
long=$("$program" generate project/small.yaml --set model.path="elsewhere/$checkpoint" --prompt The --tokens 9 | od -An -tx1)
[[ $("$program" generate elsewhere/run --prompt The --tokens 9 | od -An -tx1) == "$long" ]] || wrong "generate RUN differs"
[[ $("$program" generate "elsewhere/$checkpoint" --prompt The --tokens 9 | od -An -tx1) == "$long" ]] || wrong "generate CHECKPOINT differs"
"$program" export elsewhere/run --out plain >/dev/null
[[ $("$program" generate plain --prompt The --tokens 9 | od -An -tx1) == "$long" ]] || wrong "generate DIRECTORY of Hugging Face differs"
[[ $(measured elsewhere/run --set model.path=plain) == "$short" ]] || wrong "--set does not win over what CONFIG implies"

# Trained further where it is, planned, and begun anew under another name.
"$program" train elsewhere/run --set train.steps=5 >"$here/said"
grep -q "^resume: from elsewhere/run/ckpt/step-00000003" "$here/said" || wrong "train RUN does not go on: $(cat "$here/said")"
[[ -d elsewhere/run/ckpt/step-00000005 ]] || wrong "train RUN made no checkpoint of step 5"
"$program" plan elsewhere/run >"$here/said"
grep -Eq "^ranks +1$" "$here/said" || wrong "plan RUN does not plan: $(cat "$here/said")"
"$program" train elsewhere/run --run second --set train.steps=2 >/dev/null
[[ -d second/ckpt/step-00000002 ]] || wrong "train RUN --run DIR does not begin anew"

# The first command again: what is written whole is what it says in short.
cd "$here/elsewhere"
"$program" train ../project/small.yaml --run run --set train.steps=6 >"$here/said"
grep -q "^resume: " "$here/said" || wrong "the same command does not resume: $(cat "$here/said")"
[[ $(grep "^changed: " "$here/said") == "changed: train.steps 5 -> 6" ]] || wrong "other spellings of paths are told as changes: $(cat "$here/said")"
