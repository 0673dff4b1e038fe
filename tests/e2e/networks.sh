#!/usr/bin/env bash
# A server and three sites, each in a network of its own (ip netns), over TLS with registered keys.
# One site is far away (200 ms and 1 % loss each way, see far_line.py); its line is cut for 60 s in
# the middle of a round.
# Needs root, iproute2 and this project's commands on the PATH: sudo tests/e2e/networks.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
project=$PWD
for needed in ip utmp-superlink utmp-credentials; do
    command -v "$needed" >/dev/null || { echo "not run: there is no $needed here"; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "not run: network namespaces need root"; exit 1; }

folder=$(mktemp -d)
# Flower keeps its connections here. On a bridge the server has address .1, sites from .2; the far
# site has a line of its own, 10.78.0.0/24, and no other.
export FLWR_HOME=$folder/home FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 COLUMNS=200
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
sites=(language audio vision)
hosts=(server "${sites[@]}")
mkdir "$FLWR_HOME"

clean() {
    for host in "${hosts[@]}"; do
        ip netns pids "utmp-$host" 2>/dev/null | xargs -r kill 2>/dev/null || true
    done
    sleep 2
    for host in "${hosts[@]}"; do
        ip netns pids "utmp-$host" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns del "utmp-$host" 2>/dev/null || true
    done
    kill "${line:-}" 2>/dev/null || true
    ip link del utmp-bridge 2>/dev/null || true
    iptables -D FORWARD -i utmp-bridge -j ACCEPT 2>/dev/null || true
}
trap clean EXIT

ip link add utmp-bridge type bridge
ip link set utmp-bridge up
# Where a Docker daemon runs, or ran, nothing else is let through bridges.
iptables -I FORWARD -i utmp-bridge -j ACCEPT 2>/dev/null || true
for number in "${!hosts[@]}"; do
    host=${hosts[$number]}
    ip netns add "utmp-$host"
    ip -n "utmp-$host" link set lo up
    [ "$host" = audio ] && continue
    ip link add "utmp-$number" type veth peer name eth0 netns "utmp-$host"
    ip link set "utmp-$number" master utmp-bridge up
    ip -n "utmp-$host" addr add "10.77.0.$((number + 1))/24" dev eth0
    ip -n "utmp-$host" link set eth0 up
done
python tests/e2e/far_line.py utmp-server 10.78.0.1/24 utmp-audio 10.78.0.2/24 .2 .01 &
line=$!
at() { local host=$1; shift; ip netns exec "utmp-$host" "$@"; }

cd "$folder"
utmp-credentials out=credentials 'hosts=[10.77.0.1,10.78.0.1]' clients.language=1 clients.audio=1 clients.vision=1 >credentials.log
server=$folder/credentials/server
printf '[superlink.here]\naddress = "10.77.0.1:8000"\nroot-certificates = "%s"\n' "$server/ca.crt" >"$FLWR_HOME/config.toml"
at server utmp-superlink --host 0.0.0.0 --database "$folder/superlink.db" --enable-supernode-auth \
    --ssl-ca-certfile "$server/ca.crt" --ssl-certfile "$server/server.crt" --ssl-keyfile "$server/server.key" >superlink.log 2>&1 &
# Seconds that a request of a host to an address of the server takes.
asks() {
    at "$1" python - "https://$2:8000/health" "$server/ca.crt" <<'END'
import ssl
import sys
import time

import httpx

trust = ssl.create_default_context(cafile=sys.argv[2])
began = time.monotonic()
httpx.get(sys.argv[1], verify=trust, timeout=30).raise_for_status()
print(f"{time.monotonic() - began:.2f} s")
END
}
until asks server 10.77.0.1 >/dev/null 2>&1; do sleep 1; done
for site in "${sites[@]}"; do
    own=$folder/credentials/sites/$site-0
    at server flwr supernode register "$own/$site-0.pub" here --name "$site-0" >>register.log
    address=10.77.0.1
    [ "$site" = audio ] && address=10.78.0.1
    at "$site" utmp-client --superlink "$address:8000" --root-certificates "$own/ca.crt" \
        --auth-supernode-private-key "$own/$site-0.key" --node-config "modality=\"$site\"" >"$site.log" 2>&1 &
done
echo "a request takes $(asks language 10.77.0.1) from a near site, $(asks audio 10.78.0.1) from the far one"

overrides="rounds=4 clients.default=1 dataset.num_items=240 dataset.num_speakers=24 model.width=10 \
model.heads=2 model.layers=1 model.decoder_layers=1 client.local_epochs=1 client.device=cpu \
runtime.round_timeout=200 run_dir=$folder/run"
at server flwr run "$project" here --stream --run-config "overrides=\"$overrides\"" >run.log 2>&1 &
lines() { cat "$folder/run/rounds.jsonl" 2>/dev/null | wc -l; }
for _ in $(seq 300); do [ "$(lines)" -ge 1 ] && break; sleep 1; done
sleep 2
echo "$(date +%T) cutting the far site's line in round $(($(lines) + 1))"
ip -n utmp-audio link set far0 down
sleep 60
ip -n utmp-audio link set far0 up
echo "$(date +%T) restoring it, after $(lines) rounds"
for _ in $(seq 400); do [ -e run/summary.json ] && break; sleep 1; done
[ -e run/summary.json ] || { echo "failed: no summary; see $folder"; cat run.log; exit 1; }
python - "$folder/run/rounds.jsonl" <<'END'
import json
import sys

for line in open(sys.argv[1]):
    record = json.loads(line)
    print({name: record[name] for name in ("round", "clients", "rejected", "seconds")})
END
echo "passed: the run completed"
