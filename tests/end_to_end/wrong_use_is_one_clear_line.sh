#!/usr/bin/env bash
# What a user can get wrong ends with the documented exit code and one line that says what to do, and nothing is created.
. tests/end_to_end/common.bash

run=$here/run
train=(train examples/tiny.yaml --run "$run")

refuses 2 "there is no command trian; the nearest is train$" trian
refuses 2 "there is no command elephant; see .mop help.$" elephant
refuses 2 "unknown flag --sett; the nearest is --set; train takes --set, --run" train examples/tiny.yaml --sett a=b
refuses 2 "unknown flag --ranks; it is a setting: --set ranks=4; plan takes" plan examples/tiny.yaml --ranks 4
refuses 2 "unknown flag --steps; it is a setting: --set train.steps=5; train takes" train examples/tiny.yaml --steps=5
refuses 2 "unknown flag --lr; here it is optimizer.learning_rate; train takes" train examples/tiny.yaml --lr 1
refuses 2 "unknown flag --elephant; train takes" train examples/tiny.yaml --elephant
refuses 2 "unknown flag -n" train examples/tiny.yaml -n 4
refuses 2 "unknown flag --run; evaluate takes --set" evaluate examples/tiny.yaml --run x
refuses 2 "\-\-set needs a value" "${train[@]}" --set
refuses 2 "\"train.steps\" has no value; write --set key=value" "${train[@]}" --set train.steps
refuses 2 "two configs" "${train[@]}" examples/bible.yaml
refuses 2 "nowhere.yaml: .*No such file" train "$here/nowhere.yaml" --run "$run"
refuses 2 "this is a directory; it holds bible.yaml, tiny.yaml: type mop train examples/bible.yaml|this is a directory; it holds tiny.yaml, bible.yaml: type mop train examples/tiny.yaml" train examples --run "$run"
refuses 2 "src: a configuration is needed, this is a directory without one; give a YAML file, or a run's directory" plan src
refuses 2 "this is a model's description; name it with --set model.config=examples/tiny.json" train examples/tiny.json --run "$run"
refuses 2 "this is data; name it with --set data.path=examples/tiny.jsonl" train examples/tiny.jsonl --run "$run"
refuses 2 "this is a model; to start from its weights, type --set model.path=tests/fixtures/olmoe$" train tests/fixtures/olmoe/ --run "$run"
refuses 2 "these are weights; name it with --set model.path=DIRECTORY" plan tests/fixtures/olmoe/model.safetensors
refuses 2 "--set: unknown key \"lr\"; here it is optimizer.learning_rate" "${train[@]}" --set lr=1
refuses 2 "--set: unknown key \"elephant\"; .mop help. lists all keys" "${train[@]}" --set elephant=1
refuses 2 "which run. Without CONFIG give it a directory, as in --run runs/first" train --set model.config=examples/tiny.json
refuses 2 "device is \"cuda\"; it must be one of .*cuda:N" "${train[@]}" --set device=cuda
refuses 2 "unknown key \"train.step\"; the nearest is train.steps" "${train[@]}" --set train.step=3
refuses 2 "train.steps is \"0\"; it must be an integer from 1" "${train[@]}" --set train.steps=0
refuses 2 "no model: give model.config" "${train[@]}" --set model.config=
refuses 2 "no model: give model.config" train --run "$run"
refuses 2 "no data: give data.path" "${train[@]}" --set data.path=
refuses 2 "3 does not divide the 4 ranks" "${train[@]}" --set ranks=4 --set mixture.expert=3
refuses 2 "only meters" "${train[@]}" --set device=sim:h200
refuses 2 "device cuda:0: this version has no ops on a GPU" "${train[@]}" --set device=cuda:0
refuses 2 "no machine is named \"h3000\"" plan examples/tiny.yaml --set device=sim:h3000
refuses 2 "no machine is named \"h3000\"" doctor --compare h3000
refuses 5 "no file can be made there: No such file" doctor --out "$here/nowhere/machine.json" # before a minute is spent
refuses 2 "nowhere.yaml: .*No such file" doctor --out "$here/machine.json" --step "$here/nowhere.yaml"
refuses 2 "generate needs a prompt" generate examples/tiny.yaml
refuses 2 "\-\-tokens is \"1.5\"; it must be an integer from 1" generate examples/tiny.yaml --prompt a --tokens 1.5
refuses 3 "nothing.txt: .*No such file" "${train[@]}" --set data.path="$here/nothing.txt"
refuses 3 "nothing.json: .*No such file" "${train[@]}" --set model.config="$here/nothing.json"
refuses 3 "no checkpoint is there; $here/nothing;" "${train[@]}" --set model.path="$here/nothing"
refuses 3 "not valid JSON" "${train[@]}" --set model.config=examples/tiny.yaml
sed -E 's/("(hidden|intermediate)_size"): [0-9]+/\1: 8192/; s/("num_(experts|attention_heads)"): [0-9]+/\1: 64/; s/("num_hidden_layers"): [0-9]+/\1: 6/' \
    examples/tiny.json >"$here/large.json"
refuses 4 "the run needs up to .* GiB and this machine has" "${train[@]}" --set model.config="$here/large.json"

mkdir "$here/empty" "$here/bare"
refuses 3 "$here/empty" "${train[@]}" --set data.path="$here/empty"
cp examples/tiny.json "$here/bare/config.json"
refuses 3 "$here/bare" "${train[@]}" --set model.path="$here/bare" # a model without weights
absent "$run"

# All mistakes of a config at once: a line each, with where it is.
printf 'train:\n  step: 3\n  steps: many\nranks: -1\n' >"$here/wrong.yaml"
code_of "$MOP" train "$here/wrong.yaml" --set compute.type=fp8 --run "$run"
[[ $code == 2 && $(wc -l <"$here/err") == 5 ]] || wrong "four mistakes: exit $code, $(cat "$here/err")"
for text in "4 mistakes" "wrong.yaml:2: unknown key \"train.step\"; the nearest is train.steps" "wrong.yaml:3: train.steps is \"many\"" \
    "wrong.yaml:4: ranks is \"-1\"; it must be an integer from 0" "\-\-set: compute.type is \"fp8\"; it must be one of fp32, bf16, fp64"; do
    grep -q -- "$text" "$here/err" || wrong "four mistakes: no '$text' in $(cat "$here/err")"
done

# A directory that cannot be made, whoever asks.
touch "$here/file"
refuses 5 "cannot be .*Not a directory" train examples/tiny.yaml --run "$here/file"
code_of "$MOP" train examples/tiny.yaml --run "$here/file/run"
[[ $code == 5 && $(cat "$here/err") == *"error[5]: "*"$here/file/run"* && $(wc -l <"$here/err") == 1 ]] || wrong "a run below a file: exit $code, $(cat "$here/err")"
absent "$run"
