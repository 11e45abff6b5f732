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

# The same on a disk that is really full, where one can be mounted.
mkdir "$here/disk"
if ! mount -t tmpfs -o size=600k tmpfs "$here/disk" 2>/dev/null; then
    echo "not tried: a small disk, since this user may not mount one"
    exit 0
fi
trap 'umount "$here/disk"; rm -rf "$here"' EXIT
code_of tiny "$here/disk/run"
[[ $code == 5 ]] || wrong "on a full disk it ended with $code: $(cat "$here/err")"
grep -q "No space left on device" "$here/err" || wrong "on a full disk it says $(cat "$here/err")"
[[ -z $(ls "$here/disk/run/ckpt") ]] || wrong "it left $(ls "$here/disk/run/ckpt")"
