#!/usr/bin/env bash
# Two hosts, each with a name, an address and loopback of its own (network namespaces joined by a virtual cable), train under one mpirun
# to the bits of one process; and a rank that is stopped or killed, on either host, ends the job in time, named.
. tests/end_to_end/common.bash
needs_mpi
command -v ip >/dev/null || skip "there is no ip (package iproute2)"

hosts=("mop-a-$$" "mop-b-$$") # rank 0 and 1 on the first, 2 and 3 on the second
remove_hosts() {
    local host
    for host in "${hosts[@]}"; do ip netns delete "$host" 2>/dev/null || true; done # takes its end of the cable along
}
trap 'status=$?; [[ -z $job ]] || kill -9 "$job" 2>/dev/null || true; remove_hosts; rm -rf "$here"; exit $status' EXIT
for host in "${hosts[@]}"; do
    ip netns add "$host" 2>"$here/err" || skip "no network namespace can be made: $(cat "$here/err")"
done
unshare --uts true 2>"$here/err" || skip "no host name of its own can be had: $(cat "$here/err")"
ip -n "${hosts[0]}" link add cable0 type veth peer name cable1 netns "${hosts[1]}" 2>"$here/err" ||
    skip "no virtual cable can be laid: $(cat "$here/err")"
for i in 0 1; do
    ip -n "${hosts[i]}" address add 10.77.0.$((i + 1))/24 dev cable$i
    ip -n "${hosts[i]}" link set cable$i up
    ip -n "${hosts[i]}" link set lo up
    echo "10.77.0.$((i + 1)) slots=2" >>"$here/hosts"
done

# `on HOST COMMAND...`: there. Open MPI starts its daemons with it too, as `on ADDRESS COMMAND`, like ssh.
cat >"$here/on" <<EOF
#!/usr/bin/env bash
case \$1 in
10.77.0.1) host=${hosts[0]} ;;
10.77.0.2) host=${hosts[1]} ;;
esac
shift
exec ip netns exec "\$host" unshare --uts bash -c 'hostname "\$0"; eval "exec \$*"' "\$host" "\$@"
EOF
chmod +x "$here/on"
launch=("$here/on" 10.77.0.1 mpirun --hostfile "$here/hosts" --map-by slot --mca plm_rsh_agent "$here/on"
    --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 -n)

# The two hosts are two, and a packet takes the cable.
"${launch[@]}" 4 hostname >"$here/names" 2>"$here/err" || skip "mpirun does not run across namespaces: $(cat "$here/err")"
[[ $(sort "$here/names" | uniq -c | awk '{ print $1 }' | xargs) == "2 2" ]] || wrong "ranks are not on two hosts: $(cat "$here/names")"

sent() { ip netns exec "${hosts[0]}" cat /sys/class/net/cable0/statistics/tx_bytes; }
before=$(sent)
for mixture in "" "expert=4 dense=2 dispatch_tokens=20" "ulysses=2 ring=2 expert=2 expert_shard=2 vocabulary=4 balance_imports=1"; do
    mixture=$(printf -- '--set mixture.%s ' $mixture)
    [[ $mixture != "--set mixture. " ]] || mixture=""
    "${launch[@]}" 4 "$MOP" train examples/tiny.yaml --run "$here/hosts.run" $mixture >"$here/out"
    tiny "$here/process" --set ranks=4 $mixture >/dev/null
    same_bits "$here/hosts.run" "$here/process"
    rm -r "$here/hosts.run" "$here/process"
done
(($(sent) - before > 1000000)) || wrong "only $(($(sent) - before)) bytes went over the cable"

# A rank of either host.
for rank in 1 2; do
    begin "${launch[@]}" 4 "$MOP" train examples/tiny.yaml --run "$here/stopped$rank" --set train.steps=100000 --set comm.timeout=3
    wait_for 3 "$here/stopped$rank"
    process_of $rank
    start=$SECONDS
    kill -STOP "$process"
    ended
    stopped_rank_was_named $rank 3

    begin "${launch[@]}" 4 "$MOP" train examples/tiny.yaml --run "$here/killed$rank" --set train.steps=100000
    wait_for 3 "$here/killed$rank"
    process_of $rank
    start=$SECONDS
    kill -KILL "$process"
    ended
    [[ $code != 0 ]] || wrong "rank $rank was killed, and the job ended as if nothing had happened"
    ((SECONDS - start < 10)) || wrong "rank $rank was killed; it took $((SECONDS - start)) s"
    grep -Eq "rank $rank .*(signal 9|Killed)" "$here/err" || wrong "no line names rank $rank: $(cat "$here/err")"
done
left=$(pgrep -f -- "--run $here" || true)
[[ -z $left ]] || wrong "processes are left: $left"
