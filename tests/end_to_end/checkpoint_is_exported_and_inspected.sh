#!/usr/bin/env bash
# export makes the same clean Hugging Face directory each time and overwrites nothing; a model trained from it starts where the
# checkpoint ended; inspect and verify tell of damage and never crash.
. tests/end_to_end/common.bash

tiny "$here/run" >/dev/null
checkpoint=$here/run/ckpt/step-00000012
"$MOP" export "$here/run" --out "$here/one" >/dev/null
"$MOP" export "$checkpoint" --out "$here/two" >/dev/null
diff -r "$here/one" "$here/two" || wrong "two exports differ"
for file in config.json generation_config.json tokenizer.json model.safetensors; do
    [[ -s $here/one/$file ]] || wrong "the export has no $file"
done
absent "$here/one/manifest.json" "$here/one/state.json" "$here"/one/optim*
refuses 2 "$here/one" export "$here/run" --out "$here/one"
diff -r "$here/one" "$here/two" || wrong "a refused export changed something"
refuses 2 "dtype" export "$here/run" --out "$here/three" --dtype fp16
refuses 3 "$here/none" export "$here/none" --out "$here/three"
absent "$here/three"
loss_of() { # evaluate's numbers, without whose they are
    "$MOP" evaluate examples/tiny.yaml --set model.path="$1" | sed -E 's/"model".*//'
}
cmp <(loss_of "$here/one") <(loss_of "$checkpoint")
"$MOP" export "$here/run" --out "$here/half" --dtype bf16 >/dev/null
(($(wc -c <"$here/half/model.safetensors") * 3 < $(wc -c <"$here/one/model.safetensors") * 2)) || wrong "bf16 is not smaller"
"$MOP" evaluate examples/tiny.yaml --set model.path="$here/half" >/dev/null

for what in "$here/run" "$checkpoint" "$checkpoint/model.safetensors" "$here/one"; do "$MOP" inspect "$what" >/dev/null; done
"$MOP" ckpt verify "$here/run" >/dev/null
"$MOP" ckpt diff "$here/run" "$checkpoint" >/dev/null
"$MOP" ckpt list "$here/run" | grep -q "step 12 " || wrong "list does not show step 12"

# One damage at a time, at places spread over every file.
sound() { # says no, in one line and with exit 3, of what is in $here/damaged
    code_of "$MOP" "$@"
    [[ $code == 3 || $code == 0 ]] || wrong "$damage: mop $* ended with $code: $(cat "$here/err")"
    [[ $(wc -l <"$here/err") -le 1 ]] || wrong "$damage: mop $* says $(cat "$here/err")"
}
for file in model.safetensors manifest.json config.json state.json tokenizer.json optim-00001-of-00001.safetensors; do
    size=$(wc -c <"$checkpoint/$file")
    for damage in cut empty "flip 0" "flip 9" "flip $((size / 3))" "flip $((size - 3))" missing; do
        rm -rf "$here/damaged"
        cp -r "$checkpoint" "$here/damaged"
        path=$here/damaged/$file
        case $damage in
        cut) head -c $((size / 2)) "$checkpoint/$file" >"$path" ;;
        empty) : >"$path" ;;
        missing) rm "$path" ;;
        *) printf '\377' | dd of="$path" bs=1 seek="${damage#flip }" conv=notrunc status=none ;;
        esac
        damage="$file $damage"
        sound inspect "$here/damaged"
        [[ ! -e $path || $file != *.safetensors ]] || sound inspect "$path"
        sound ckpt verify "$here/damaged"
        [[ $code == 3 ]] || wrong "$damage: verify calls it whole"
    done
done
