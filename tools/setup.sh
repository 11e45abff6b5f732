#!/usr/bin/env bash
# Installs what is missing of the named sets of Debian packages, and nothing else:
#
#     tools/setup.sh build [test] [text] [mpi] [clang] [format]
#
# Where packages cannot be installed (no Debian, no root), it says which are wanted and goes on: the same libraries may be
# there under other names, and CMake has the last word.
set -euo pipefail

declare -A packages=(
    [build]="gcc libc6-dev make cmake pkg-config libjansson-dev libyaml-dev libxxhash-dev"
    [test]="libcmocka-dev"
    [text]="bible-kjv bible-kjv-text"
    [mpi]="libopenmpi-dev openmpi-bin"
    [clang]="clang libclang-rt-14-dev"
    [format]="clang-format"
)

wanted=()
for set in "$@"; do
    [[ -v packages[$set] ]] || { echo "tools/setup.sh: no set '$set'; there are: ${!packages[*]}" >&2; exit 2; }
    read -ra words <<<"${packages[$set]}"
    wanted+=("${words[@]}")
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "tools/setup.sh: this is not a Debian system; wanted are what Debian calls: ${wanted[*]}" >&2
    exit 0
fi

# One question for all of them; a package that dpkg has never heard of is missing too.
installed=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null | sed -n 's/^installed //p' || true)
missing=()
for package in "${wanted[@]}"; do
    [[ $'\n'$installed$'\n' == *$'\n'$package$'\n'* ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

as_root=()
if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
        echo "tools/setup.sh: missing ${missing[*]}; there is no sudo here: as root, run apt-get install ${missing[*]}" >&2
        exit 0
    fi
    as_root=(sudo)
fi
echo "tools/setup.sh: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq || true # an archive that mop does not need may be out of reach; the next line has the last word
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
