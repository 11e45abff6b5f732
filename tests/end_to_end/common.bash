# What the end-to-end tests share: the program $MOP, a directory of their own, and words for what is expected of them.
# They run in the source root, so that paths read like a user's.
set -eu -o pipefail
: "${MOP:?is the program to test, as in MOP=build/mop bash $0}"
here=$(mktemp -d)
job=
trap 'status=$?; [[ -z $job ]] || kill -9 "$job" 2>/dev/null || true; rm -rf "$here"; exit $status' EXIT

wrong() {
    echo "$(basename "$0" .sh): $*" >&2
    exit 1
}

skip() {
    echo "skipped: $*"
    exit 77
}

# Trains examples/tiny.yaml: `tiny RUN FLAG...`.
tiny() {
    local run=$1
    shift
    "$MOP" train examples/tiny.yaml --run "$run" "$@"
}

# `begin COMMAND...`: in the background, as $job; what it says is in $here/out and $here/err.
begin() {
    "$@" >"$here/out" 2>"$here/err" &
    job=$!
}

# `wait_for STEP RUN`: until the run in the background has made it.
wait_for() {
    local lines=0
    while ((lines < $1)); do
        sleep 0.02
        lines=$(wc -l 2>/dev/null <"$2/metrics.jsonl") || lines=0
        [[ -n $(jobs -pr) ]] || wrong "the run ended after $lines steps, before step $1: $(cat "$here/err")"
    done
}

# Waits until the job in the background has ended, and sets $code.
ended() {
    code=0
    wait "$job" 2>/dev/null || code=$?
    job=
}

# `code_of COMMAND...`: sets $code to its exit status; what it says is in $here/out and $here/err.
code_of() {
    code=0
    "$@" >"$here/out" 2>"$here/err" || code=$?
}

# `refuses CODE PATTERN ARGUMENT...`: mop ends with this exit code and says this in one line, and nothing else.
refuses() {
    local expected=$1 pattern=$2
    shift 2
    code_of "$MOP" "$@"
    [[ $code == "$expected" ]] || wrong "mop $* ended with $code, not $expected: $(cat "$here/err")"
    grep -Eq -- "^mop: error\[$expected\]: .*$pattern" "$here/err" || wrong "mop $* does not say '$pattern': $(cat "$here/err")"
    [[ $(wc -l <"$here/err") == 1 ]] || wrong "mop $* says more than one line: $(cat "$here/err")"
}

# `absent PATH...`: none of these was made.
absent() {
    local path
    for path in "$@"; do [[ ! -e $path ]] || wrong "$path was made: $(find "$path")"; done
}

# `numbers RUN`: its metrics without those that tell the time or the machine.
numbers() {
    sed -E 's/"seconds".*"expert_load/"expert_load/' "$1/metrics.jsonl"
}

# `value KEY STEP RUN`: one number of the metrics.
value() {
    sed -nE "s/^\{\"step\": $2,.*\"$1\": ([^,}]*).*/\1/p" "$3/metrics.jsonl"
}

# `same_bits RUN RUN`: the metrics and every byte of the newest checkpoints.
same_bits() {
    local newest
    cmp <(numbers "$1") <(numbers "$2") || wrong "metrics of $1 and $2 differ"
    newest=$(ls "$1/ckpt" | tail -n 1)
    diff -rq "$1/ckpt/$newest" "$2/ckpt/$newest" || wrong "checkpoints of $1 and $2 differ"
}

# `close VALUE VALUE LARGEST`: their relative difference is not larger.
close() {
    awk -v a="$1" -v b="$2" -v most="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a != "" && b != "" && d <= most * b) }' ||
        wrong "$1 and $2 differ by more than $3"
}

# ---- Under mpirun ------------------------------------------------------------------------------------------------------------

launch=(mpirun --oversubscribe -n) # and the number of ranks

needs_mpi() {
    command -v mpirun >/dev/null || skip "there is no mpirun"
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0 # Open MPI leaves memory behind at its end
    code_of "${launch[@]}" 1 "$MOP" config show
    [[ $code == 0 ]] || skip "mpirun does not run here: $(cat "$here/err")"
    code_of "${launch[@]}" 1 "$MOP" generate examples/tiny.yaml --prompt a --tokens 1
    grep -q "built without MPI" "$here/err" && skip "this mop was built without MPI"
    [[ $code == 0 ]] || wrong "one rank under mpirun fails: $(cat "$here/err")"
}

# `process_of RANK`: sets $process to that of this rank, among those of the job.
process_of() {
    for process in $(pgrep -f -- "--run $here"); do
        if tr '\0' '\n' <"/proc/$process/environ" 2>/dev/null | grep -qx "OMPI_COMM_WORLD_RANK=$1"; then return; fi
    done
    wrong "there is no process of rank $1 below mpirun"
}

# `stopped_rank_was_named RANK TIMEOUT`: the job, of which this rank was stopped at $start, has ended as it must: within the timeout
# and 5 s. The limit is twice the 5 s: mpirun itself takes its time where other programs hold the cores.
stopped_rank_was_named() {
    [[ $code == 6 ]] || wrong "rank $1 was stopped: exit $code, $(cat "$here/err")"
    ((SECONDS - start <= $2 + 10)) || wrong "it took $((SECONDS - start)) s"
    [[ $(grep -c "^mop: error" "$here/err") == 1 ]] || wrong "not one line of error: $(cat "$here/err")"
    grep -q "^mop: error\[6\]: rank $1 did not answer after rank [0-9]* had waited $2 s in collective" "$here/err" ||
        wrong "the line does not name rank $1: $(cat "$here/err")"
    grep -Eq "^ *$1  does not answer$" "$here/err" || wrong "no table of the last collectives: $(cat "$here/err")"
}
