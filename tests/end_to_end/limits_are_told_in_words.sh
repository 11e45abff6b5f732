#!/usr/bin/env bash
# Long sequences, many ranks, few threads and little memory: what works works, and the rest is one sentence with its exit code.
. tests/end_to_end/common.bash

# `ends_well COMMAND...`: done, or refused in words for what the settings or the machine are. Sets $code.
ends_well() {
    code_of "$@"
    [[ $code == 0 || $code == 2 || $code == 4 ]] || wrong "$* ended with $code: $(cat "$here/err")"
    ! grep -q defect "$here/err" || wrong "$* calls it a defect: $(cat "$here/err")"
    [[ $code == 0 ]] || grep -q "^mop: error\[$code\]: " "$here/err" || wrong "$* ended with $code and says: $(cat "$here/err")"
}

sanitized=no # their memory is not ours to limit
if grep -qa -e __asan_init -e __tsan_init "$MOP"; then sanitized=yes; fi

# ---- Long sequences --------------------------------------------------------------------------------------------------------------

long=(plan examples/bible.yaml --set ranks=1 --set train.sequences=1 --set train.micro_batches=1)
for length in 4000000 2147483647; do ends_well "$MOP" "${long[@]}" --set ranks=8 --set mixture.ring=8 --set train.sequence_length=$length; done
refuses 2 "rows are numbered in 32 bits" "${long[@]}" --set train.sequence_length=2147483647 --set train.sequences=2
refuses 2 "mixture.loss_chunk cuts the up to 5000000 tokens of a micro-batch into so many parts that a step has 5000000 rounds, and 4194304 are the most" "${long[@]}" \
    --set train.sequence_length=5000000 --set mixture.loss_chunk=1

# Heads and products whose FLOPs do not fit 63 bits.
sed -E 's/("num_attention_heads"): [0-9]+/\1: 16384/; s/("head_dim"): [0-9]+/\1: 1024/' tests/fixtures/qwen3_moe/config.json >"$here/heads.json"
code_of "$MOP" "${long[@]}" --set model.config="$here/heads.json" --set train.sequence_length=400000 --set device=sim:h200
[[ $code == 0 ]] || wrong "FLOPs beyond 63 bits: exit $code, $(cat "$here/err")"
awk '$1 == "attention" && $2 > 1e9 { found = 1 } END { exit !found }' "$here/out" || wrong "FLOPs are missing: $(cat "$here/out")"

# A layer of more than a PiB.
sed -E 's/("(hidden|moe_intermediate)_size"): [0-9]+/\1: 1048576/; s/("num_local_experts"): [0-9]+/\1: 4096/' tests/fixtures/qwen3_moe/config.json \
    >"$here/wide.json"
refuses 4 "a rank needs more than 1024 TiB in its .* arena" plan examples/tiny.yaml --set model.config="$here/wide.json" --set ranks=1

# ---- Many ranks ------------------------------------------------------------------------------------------------------------------

small=(plan examples/tiny.yaml --set train.sequence_length=8)
ends_well "$MOP" "${small[@]}" --set ranks=600 # more than are read at a time
ends_well "$MOP" plan examples/tiny.yaml --set ranks=65536
[[ $code == 0 ]] || grep -Eq "error\[4\]: .*(they need 65536 threads, and this machine lets|to plan 65536 ranks takes about)" "$here/err" ||
    wrong "65536 ranks: $(cat "$here/err")"
refuses 4 "100 ranks x 65536 threads: they need 6553700 threads, and this machine lets all its programs have" \
    train examples/tiny.yaml --run "$here/run" --set ranks=100 --set compute.threads=65536
refuses 4 "to plan 8 ranks takes about .* GiB here, .* MiB each, and this machine has" "${long[@]}" --set ranks=8 --set mixture.ring=8 \
    --set train.sequence_length=2147483647 --set mixture.loss_chunk=1000000

# ---- Little address space, few threads -------------------------------------------------------------------------------------------

# `limited MiB COMMAND...`: in so much address space. 127: the loader itself found too little.
limited() {
    local mib=$1
    shift
    code_of bash -c 'ulimit -v $(($1 * 1024)); shift; exec "$@"' limit "$mib" "$@"
    if [[ $code == 127 || $code == 1 || $code == 126 ]] && ! grep -q "^mop: " "$here/err"; then return; fi
    [[ $code == 0 || $code == 4 ]] || wrong "$* in $mib MiB ended with $code: $(cat "$here/err")"
    ! grep -q defect "$here/err" || wrong "$* in $mib MiB calls it a defect: $(cat "$here/err")"
}
if [[ $sanitized == no ]]; then
    for mib in 8 12 16 20 24 28 32 48 64 80 96 128 160 200 260; do
        limited $mib "$MOP" plan examples/tiny.yaml --set ranks=4
        limited $mib "$MOP" train examples/tiny.yaml --set ranks=4 --set train.steps=1 --run "$here/limited"
        rm -rf "$here/limited"
    done
    limited 1000 "$MOP" plan examples/tiny.yaml --set ranks=2000
    [[ $code == 4 ]] && grep -q "of 2000 threads could be started: .*use fewer ranks, or raise the limits" "$here/err" ||
        wrong "2000 ranks in 1000 MiB: exit $code, $(cat "$here/err")"
fi

# Root has as many processes as it likes, so another user is asked.
nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
cp "$MOP" "$here/mop" && chmod 755 "$here" "$here/mop"
cp -r examples "$here/examples" && chmod -R a+rX "$here/examples" && mkdir -m 777 "$here/open"
if [[ $sanitized == no ]] && (cd "$here" && "${nobody[@]}" "$here/mop" plan examples/tiny.yaml) >/dev/null 2>&1; then
    for processes in 1 2 3 4 6 9 14 20; do
        cd "$here"
        code_of "${nobody[@]}" bash -c 'ulimit -u $1; shift; exec "$@"' limit $processes "$here/mop" train examples/tiny.yaml --set ranks=8 \
            --set train.steps=1 --run "$here/open/run"
        [[ $code == 0 || $code == 4 ]] || wrong "8 ranks with $processes processes ended with $code: $(cat "$here/err")"
        ! grep -q defect "$here/err" || wrong "8 ranks with $processes processes call it a defect: $(cat "$here/err")"
        cd "$OLDPWD"
    done
    [[ $processes == 20 ]] || wrong "not all limits were tried"
else
    echo "not tried: few processes, since no other user can run mop here"
fi

# ---- Machines and disks ----------------------------------------------------------------------------------------------------------

started=$SECONDS
refuses 5 "\-\-disk: no file can be made there: No such file or directory; $here/nowhere" doctor --disk "$here/nowhere"
refuses 5 "\-\-disk: no file can be made there: Not a directory" doctor --disk examples/tiny.yaml
((SECONDS - started < 10)) || wrong "doctor took $((SECONDS - started)) s to see that there is no such directory"

machine() { # `machine SECTION KEY VALUE`
    printf '{"mop_machine": 1, "name": "odd", "source": "test", "like": "h200", "%s": {"%s": %s}}\n' "$1" "$2" "$3" >"$here/odd.json"
}
for value in 0 -1 1e308 -1e308 1e-308; do
    for key in "nodes count" "nodes units" "link bytes_per_s" "link latency_s" "unit_rates matrix_bf16_flop_per_s" "unit_rates memory_bytes"; do
        # shellcheck disable=SC2086
        machine $key $value
        code_of "$MOP" plan examples/tiny.yaml --set device=sim:"$here/odd.json"
        [[ $code == 2 ]] && grep -q "must be from" "$here/err" || wrong "a machine with $key $value: exit $code, $(cat "$here/err")"
    done
done
for value in NaN Infinity 1e999 '"7"' null; do
    machine link bytes_per_s "$value"
    code_of "$MOP" plan examples/tiny.yaml --set device=sim:"$here/odd.json"
    [[ $code == 2 || $code == 3 ]] && grep -q "^mop: error" "$here/err" || wrong "a machine with $value: exit $code, $(cat "$here/err")"
done
