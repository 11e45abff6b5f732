# What bench/cpu.sh and bench/gpu.sh have in common; they source it. They set out (the directory), name (the machine),
# commit, date, and stem (what programs say goes to $stem-LABEL.txt).
worst=0

# `measure LABEL LIMIT COMMAND...`: runs it, shows and keeps what it says; sets $code and $took.
measure() {
    local label=$1 limit=$2 begun=$SECONDS
    shift 2
    echo "==== $label ($SECONDS s)"
    code=0
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$stem-$label.txt" || code=${PIPESTATUS[0]}
    took=$((SECONDS - begun))
    worst=$((code > worst ? code : worst))
}

# `line FILE COMMAND CODE SECONDS FIGURES`: one line of JSON; no text in it needs escapes.
line() {
    printf '{"date": "%s", "machine": "%s", "commit": "%s", "command": "%s", "exit": %d, "seconds": %d, "figures": %s}\n' \
        "$date" "$name" "$commit" "$2" "$3" "$4" "$5" >>"$1"
}

# `one_line FILE`: JSON on one line; null where there is no file.
one_line() {
    if [[ -s $1 ]]; then tr -s ' \n' ' ' <"$1"; else printf null; fi
}
