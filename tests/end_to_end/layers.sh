#!/usr/bin/env bash
# Folders of src/ include themselves and folders to their left, nothing else; the libraries that one file is meant to hide are
# included there only; what needs CUDA is included in folders named cuda only. Each rule is first shown to notice a file that
# breaks it, then applied to the tree.
set -euo pipefail

order=(base device ops comm model store data checkpoint train plan main)
hidden=("mpi.h src/comm/wire_mpi.c" "yaml.h src/base/" "jansson.h src/base/" "cublasLt.h src/device/cuda/" "cudnn.h src/device/cuda/"
    "nccl.h src/device/cuda/")

# Prints every violation under ROOT/src, a line each.
violations() {
    local file line
    (cd "$1" && find src \( -name '*.[ch]' -o -name '*.cu' \) -print0 | sort -z | xargs -0 grep -nE '^[[:space:]]*#[[:space:]]*include' /dev/null) |
        awk -v order="${order[*]}" -v hidden="$(printf '%s;' "${hidden[@]}")" -v root="$1" '
            BEGIN {
                n = split(order, folder, " ")
                for (i = 1; i <= n; i++) place[folder[i]] = i
                n = split(hidden, row, ";")
                for (i = 1; i < n; i++) { split(row[i], pair, " "); home[pair[1]] = pair[2] }
            }
            function say(why) { print file ":" line ": " why }
            {
                match($0, /^[^:]*:[0-9]+:/)
                split($0, where, ":")
                file = where[1]; line = where[2]
                include = substr($0, RLENGTH + 1)
                from = file; sub(/^src\//, "", from); sub(/[\/.].*$/, "", from)
                if (!(from in place)) { say("the folder " from " is in no layer"); next }
                if (match(include, /<[^>]*>/)) {
                    name = substr(include, RSTART + 1, RLENGTH - 2)
                    if (name in home && index(file, home[name]) != 1) say("<" name "> belongs to " home[name])
                    next
                }
                if (!match(include, /"[^"]*"/)) next # a macro
                name = substr(include, RSTART + 1, RLENGTH - 2)
                to = name; sub(/\/.*$/, "", to)
                if (name !~ /\// || name ~ /\.\.\//) { say("\"" name "\" is not spelled \"folder/file.h\""); next }
                if (!(to in place)) say("\"" name "\" is outside src/")
                else if (name ~ /\/cuda\// && file !~ /\/cuda\//) say("\"" name "\" is for folders named cuda")
                else if (place[to] > place[from]) say(from " may not include " to " (\"" name "\")")
                else if (system("test -f " root "/src/" name)) say("\"" name "\" does not exist")
            }'
}

# `judge FILE LINE`: what is said about a small right tree to which FILE, with LINE as its third, was added.
judge() {
    rm -rf "$scratch/src"
    mkdir -p "$scratch/src/base" "$scratch/src/store" "$scratch/$(dirname "$1")"
    touch "$scratch/src/base/base.h" "$scratch/src/store/store.h"
    printf '#include <stdio.h>\n#include "base/base.h"\n%s\n' "$2" >"$scratch/$1"
    violations "$scratch"
}

# `notices FILE LINE REASON` and `accepts FILE LINE`.
notices() {
    local said
    said=$(judge "$1" "$2")
    [[ $said == *"$1:3: "*"$3"* ]] || { echo "layers: '$2' in $1 gave '$said', wanted '$3'"; exit 1; }
}
accepts() {
    local said
    said=$(judge "$1" "$2")
    [[ -z $said ]] || { echo "layers: '$2' in $1 gave '$said', wanted nothing"; exit 1; }
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
notices src/model/block.c '#include "store/store.h"' "model may not include store"
notices src/ops/cpu/dense.c '  #  include "store/store.h"' "ops may not include store"
notices src/base/base.c '#include "main/main.h"' "base may not include main"
notices src/train/step.c '#include "base/gone.h"' "does not exist"
notices src/train/step.c '#include "base.h"' "not spelled"
notices src/ops/cpu/dense.c '#include "../../store/store.h"' "not spelled"
notices src/plan/plan.c '#include "tests/testing.h"' "outside src/"
notices src/plan/plan.c '#include <mpi.h>' "belongs to src/comm/wire_mpi.c"
notices src/plan/plan.c '#include <cudnn.h>' "belongs to src/device/cuda/"
notices src/plan/plan.c '#include "device/cuda/gpu.h"' "is for folders named cuda"
notices src/ops/cuda/update.cu '#include "model/block.h"' "ops may not include model"
notices src/other/other.c '#include "base/base.h"' "is in no layer"
accepts src/main.c '#include "store/store.h"'
accepts src/store/shard.c '#include "store/store.h"'
accepts src/comm/wire_mpi.c '#include <mpi.h>'

found=$(violations .)
if [[ -n $found ]]; then
    echo "$found"
    exit 1
fi
echo "layers: $(find src -name '*.[ch]' -o -name '*.cu' | wc -l) files include only themselves and what is to their left: ${order[*]}"
