#!/usr/bin/env bash
# Ranks that are processes of an mpirun train to the metrics and checkpoint bytes of ranks that are threads.
. tests/end_to_end/common.bash
needs_mpi

for layout in "2 expert=2" "4 expert=2 vocabulary=4" "4 ulysses=2 ring=2 expert=2 expert_shard=2 dispatch_tokens=20 balance_imports=1"; do
    read -r ranks mixture <<<"$layout"
    mixture=$(printf -- '--set mixture.%s ' $mixture)
    "${launch[@]}" $ranks "$MOP" train examples/tiny.yaml --run "$here/processes" $mixture >"$here/out"
    grep -q $'[\r\033]' "$here/out" && wrong "the output is not plain: $(cat -v "$here/out")"
    grep -q "^ranks      $ranks x 1 thread" "$here/out" || wrong "the banner does not tell of $ranks ranks: $(cat "$here/out")"
    tiny "$here/threads" --set ranks=$ranks $mixture >/dev/null
    same_bits "$here/processes" "$here/threads"
    cmp "$here/processes/config.yaml" "$here/threads/config.yaml"
    rm -r "$here/processes" "$here/threads"
done

# What all ranks get wrong is said once.
says_once() {
    local expected=$1 text=$2
    shift 2
    code_of "${launch[@]}" 2 "$MOP" "$@" --run "$here/wrong"
    [[ $code == "$expected" && $(grep -c "^mop: error\[$expected\]: .*$text" "$here/err") == 1 ]] || wrong "mop $* under mpirun: exit $code, $(cat "$here/err")"
    absent "$here/wrong"
}
says_once 2 "ranks = 3, but mpirun started 2" train examples/tiny.yaml --set ranks=3
says_once 2 "unknown key \"rnks\"" train examples/tiny.yaml --set rnks=2
says_once 3 "No such file" train examples/tiny.yaml --set data.path="$here/nothing"
says_once 3 "no checkpoint is there" train examples/tiny.yaml --set model.path="$here/nothing"
