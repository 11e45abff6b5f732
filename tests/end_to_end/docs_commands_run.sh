#!/usr/bin/env bash
# Every command between `<!-- run -->` and `<!-- end -->` of README.md and docs/start.md runs as it is written there, one after the
# other, and ends with 0. Runs go to a directory of this test's own.
. tests/end_to_end/common.bash
program=$(realpath "$MOP")

commands() {
    awk '/^<!-- run -->$/ { on = 1; next } /^<!-- end -->$/ { on = 0 } on && sub(/^    /, "")' "$1"
}

# The source tree as a user sees it, with the program where `make` puts it.
mkdir "$here/tree"
for entry in *; do [[ $entry == build* || $entry == runs ]] || ln -s "$PWD/$entry" "$here/tree/$entry"; done
mkdir "$here/tree/build"
ln -s "$program" "$here/tree/build/mop"
cd "$here/tree"

for page in README.md docs/start.md; do
    count=0
    while IFS= read -r command; do
        code=0
        bash -c "$command" >"$here/out" 2>"$here/err" </dev/null || code=$?
        [[ $code == 0 ]] || wrong "$page: '$command' ended with $code: $(cat "$here/err")"
        count=$((count + 1))
    done < <(commands "$page")
    ((count > 5)) || wrong "$page has only $count commands that are run"
done

# A part of a plan is shown, as `mop plan` prints it ("..." stands for the rest of a line).
lines=0
while IFS= read -r line; do
    grep -qF -- "${line% ...}" tests/plans/tiny-4.txt || wrong "docs/start.md shows a line of a plan that there is none of: $line"
    lines=$((lines + 1))
done < <(awk '/^<!-- lines of/ { on = 1; next } /^<!-- end -->$/ { on = 0 } on && sub(/^    /, "")' docs/start.md)
((lines > 10)) || wrong "docs/start.md shows only $lines lines of a plan"

# What the pages speak of is there: settings, commands, files.
mapfile -t named < <(grep -ohE '\b(model|data|train|compute|optimizer|loss|checkpoint|mixture|sim|comm)\.[a-z_0-9]+(=|`| )' README.md docs/start.md |
    sed 's/[=` ]$//' | sort -u | grep -vE '^(data|train|model)\.(jsonl|json|tokens|safetensors|txt)$|^loss\.rolling')
((${#named[@]} >= 15)) || wrong "only ${#named[@]} settings are named"
for key in "${named[@]}"; do "$program" help "$key" >/dev/null 2>&1 || wrong "README.md or docs/start.md names $key, which is no setting"; done
