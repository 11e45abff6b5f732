#!/usr/bin/env bash
# Two hosts under one mpirun, each with files of its own (two directories here): where a file differs that decides the result, all end
# with 2 and one sentence that says which and on which rank, before anything is made. Where it is missing, with the sentence of the rank
# that lacks it. Files that are the same, under whatever names, do.
. tests/end_to_end/common.bash
needs_mpi

mop=$(realpath "$MOP")
tiny "$here/run" --set train.steps=2 >/dev/null
tiny "$here/longer" --set train.steps=3 >/dev/null
fresh() { # both hosts have the same
    rm -rf "$here/a" "$here/b"
    mkdir "$here/a" "$here/b"
    cp -r examples "$here/a/"
    cp -r "$here/run" "$here/a/weights"
    cp "$here/run/ckpt/step-00000002/tokenizer.json" "$here/a/"
    "$MOP" data examples/tiny.jsonl --out "$here/a/tiny.tokens" >/dev/null
    cp -r "$here/a/." "$here/b/"
}

# `hosts ARGUMENT...`: rank 0 in a, rank 1 in b.
hosts() {
    code_of "${launch[@]}" 1 -wdir "$here/a" "$mop" "$@" : -n 1 -wdir "$here/b" "$mop" "$@"
}

# `differ PATTERN ARGUMENT...`
differ() {
    local pattern=$1
    shift
    hosts "$@"
    [[ $code == 2 && $(grep -c "^mop: error" "$here/err") == 1 ]] || wrong "$*: exit $code, $(cat "$here/err")"
    grep -q "^mop: error\[2\]: $pattern" "$here/err" || wrong "$* does not say '$pattern': $(cat "$here/err")"
    absent "$here/new"
}

train=(train examples/tiny.yaml --run "$here/new" --set train.steps=2)
evaluate=(evaluate examples/tiny.yaml --set comm.timeout=20)
generate=(generate examples/tiny.yaml --prompt "In the" --tokens 3)

# A text three times as long makes other numbers of collectives in evaluate; with a divided vocabulary ranks ask each other for rows.
fresh
cat examples/tiny.jsonl examples/tiny.jsonl >>"$here/b/examples/tiny.jsonl"
differ "the data differs on rank 1: give every host the same files at data.path$" "${evaluate[@]}"
differ "the data differs on rank 1: " "${train[@]}" --set mixture.vocabulary=2
"$MOP" data "$here/b/examples/tiny.jsonl" --out "$here/b/tiny.tokens" >/dev/null
differ "the data differs on rank 1: " "${train[@]}" --set data.path=tiny.tokens

fresh
sed -i 's/10000.0/50000.0/' "$here/b/examples/tiny.json"
for command in train evaluate generate; do
    declare -n words=$command
    differ "the model's description differs on rank 1: give every host the same config.json$" "${words[@]}"
done

# Ids of bytes 97 and 98 change places: the text is read otherwise, and what is generated is written otherwise.
fresh
sed -i 's/"a": *97\b/"a": 98/; s/"b": *98\b/"b": 97/' "$here/b/tokenizer.json"
cmp -s "$here/a/tokenizer.json" "$here/b/tokenizer.json" && wrong "the tokenizer is not another one"
differ "the tokenizer differs on rank 1: .*; the data differs on rank 1: " "${train[@]}" --set data.tokenizer=tokenizer.json
differ "the tokenizer differs on rank 1: give every host the same tokenizer.json$" "${generate[@]}" --set data.tokenizer=tokenizer.json

# Weights of a run that went further on one host; the prompt of another command.
rm -r "$here/b/weights"
cp -r "$here/longer" "$here/b/weights"
cp "$here/a/tokenizer.json" "$here/b/"
for command in train evaluate generate; do
    declare -n words=$command
    differ "the weights to be read differ on rank 1: " "${words[@]}" --set model.path=weights
done
code_of "${launch[@]}" 1 "$mop" "${generate[@]}" : -n 1 "$mop" "${generate[@]}" --prompt "in the"
grep -q "^mop: error\[2\]: the command or its arguments differ on rank 1: " "$here/err" || wrong "two prompts: exit $code, $(cat "$here/err")"

# A checkpoint that is another one on rank 1's host is not half of this one.
sed "s/2e-3/1e-3/; s#: tiny#: $PWD/examples/tiny#" examples/tiny.yaml >"$here/other.yaml"
mkdir -p "$here/a/resumed" "$here/b/resumed"
"$MOP" train examples/tiny.yaml --run "$here/a/resumed" --set train.steps=2 >/dev/null
"$MOP" train "$here/other.yaml" --run "$here/b/resumed" --set train.steps=2 >/dev/null
hosts train examples/tiny.yaml --run resumed --set train.steps=4
[[ $code == 2 ]] && grep -q "^mop: error\[2\]: the weights to be read differ on rank 1: " "$here/err" || wrong "two checkpoints: exit $code, $(cat "$here/err")"

# What is missing on one host.
fresh
for host in a b; do
    mv "$here/$host/examples/tiny.jsonl" "$here/$host/examples/away"
    hosts "${train[@]}"
    [[ $code == 3 && $(grep -c "^mop: error\[3\]: examples/tiny.jsonl: cannot read: " "$here/err") == 1 ]] || wrong "no text in $host: exit $code, $(cat "$here/err")"
    [[ $host == a ]] || grep -q "^mop: error.* (rank 1)$" "$here/err" || wrong "it does not say where: $(cat "$here/err")"
    absent "$here/new"
    mv "$here/$host/examples/away" "$here/$host/examples/tiny.jsonl"
done

# The same files under other names, in another spelling.
mv "$here/b/examples/tiny.jsonl" "$here/b/moved.jsonl"
sed 's/50000.0/5e4/; s/  */ /g' examples/tiny.json >"$here/b/spelt.json"
code_of "${launch[@]}" 1 -wdir "$here/a" "$mop" "${train[@]}" : -n 1 -wdir "$here/b" "$mop" "${train[@]}" --set data.path=moved.jsonl --set model.config=spelt.json
[[ $code == 0 ]] || wrong "the same files under other names: exit $code, $(cat "$here/err")"
