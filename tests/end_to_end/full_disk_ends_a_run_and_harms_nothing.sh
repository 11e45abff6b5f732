#!/usr/bin/env bash
# A checkpoint that does not fit on the disk ends the run with exit 5, a line and an event; older ones stay whole, and with more
# room the same command goes on.
. tests/end_to_end/common.bash

run=$here/run
options=(--set checkpoint.every=6 --set checkpoint.keep=0 --set optimizer.schedule=constant)
tiny "$run" "${options[@]}" --set train.steps=6 >/dev/null

# No file may be larger than 100 KiB: a checkpoint's are, the journal's are not.
full() (
    trap '' XFSZ
    ulimit -f 100
    tiny "$run" "${options[@]}"
)
code_of full
[[ $code == 5 && $(grep -c . "$here/err") == 1 ]] || wrong "it ended with $code: $(cat "$here/err")"
grep -Eq "^mop: error\[5\]: .*File too large.*free some space" "$here/err" || wrong "it says $(cat "$here/err")"
grep -Eq '"event": "error".*"code": 5' "$run/events.jsonl" || wrong "events.jsonl has no error"
[[ $(ls "$run/ckpt") == step-00000006 ]] || wrong "it left $(ls "$run/ckpt")"
"$MOP" ckpt verify "$run" >/dev/null
tiny "$run" "${options[@]}" >/dev/null
tiny "$here/whole" "${options[@]}" >/dev/null
diff -rq "$here/whole/ckpt/step-00000012" "$run/ckpt/step-00000012" || wrong "the run that met a full disk ends differently"

# A disk that is really full, where one can be mounted: found out at the start, with numbers.
mkdir "$here/disk"
if ! mount -t tmpfs -o size=6m tmpfs "$here/disk" 2>/dev/null; then
    echo "not tried: a small disk, since this user may not mount one"
    exit 0
fi
trap 'umount "$here/disk"; rm -rf "$here"' EXIT
many=(--set checkpoint.every=2 --set train.steps=40 --set optimizer.schedule=constant)
refuses 5 "the disk has no room for 4 more checkpoints: 9\.0 MB are needed and [0-9.]+ MB free; $here/disk/run; free some space" \
    train examples/tiny.yaml --run "$here/disk/run" "${many[@]}"
absent "$here/disk/run"
tiny "$here/disk/run" "${many[@]}" --set checkpoint.keep=1 --set train.steps=4 >/dev/null
tiny "$here/disk/run" "${many[@]}" --set checkpoint.keep=1 --set train.steps=6 >/dev/null # what is there already is not needed again
tiny "$here/disk/all" "${many[@]}" --set checkpoint.keep=0 --set train.steps=6 >"$here/out" # all stay, and may be moved away
grep -q "^warning: the disk has no room for 3 more checkpoints" "$here/out" || wrong "it is not warned of: $(cat "$here/out")"
rm -r "$here/disk/all"

# And when it fills up while a run trains: asked again before each save, while there is room for metrics; older ones stay whole.
begin "$MOP" train examples/tiny.yaml --run "$here/disk/run" --set checkpoint.keep=1 --set checkpoint.every=60 --set train.steps=600 --set optimizer.schedule=constant
wait_for 8 "$here/disk/run"
free=$(df --output=avail -k "$here/disk" | tail -n 1)
head -c $(((free - 1500) * 1024)) /dev/zero >"$here/disk/other"
ended
[[ $code == 5 ]] || wrong "on a full disk it ended with $code: $(cat "$here/err")"
grep -q "the disk has no room for 1 more checkpoint: 2.2 MB are needed and 1\.[0-9] MB free" "$here/err" || wrong "it says $(cat "$here/err")"
[[ $(ls "$here/disk/run/ckpt") == step-00000006 ]] || wrong "it left $(ls "$here/disk/run/ckpt")"
"$MOP" ckpt verify "$here/disk/run" >/dev/null
