#!/usr/bin/env bash
# Writes the example's training text: the King James Version of the Bible (public domain) out of Debian's bible-kjv, 4.4 MB,
# a verse a line: "Ge1:1 In the beginning God created the heaven and the earth."
#
#     tools/text.sh OUT
#
# OUT appears only when it is whole.
set -euo pipefail

out=${1:?usage: tools/text.sh OUT}
verses=31102 # of the 66 books
bytes=4300000

command -v bible >/dev/null || { echo "tools/text.sh: no program 'bible'; install Debian's bible-kjv, or set data.path to a text of your own" >&2; exit 1; }
mkdir -p "$(dirname "$out")"
trap 'rm -f "$out.part"' EXIT
bible -p /usr/lib -f gen1:1-rev22:21 </dev/null >"$out.part"

read -r got_verses got_bytes < <(wc -lc <"$out.part")
if ((got_verses != verses || got_bytes < bytes)); then
    echo "tools/text.sh: 'bible' gave $got_verses verses in $got_bytes bytes; expected $verses in at least $bytes" >&2
    exit 1
fi
mv "$out.part" "$out"
echo "$out: $got_verses verses, $got_bytes bytes"
