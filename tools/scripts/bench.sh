#!/usr/bin/env bash
# Starts a platform of its own, measures a short form of everything on it, writes
# reports and plots into the folder given as the argument, and ends it. Every
# measurement is made even when one fails; the exit code then is 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$1 sirocco=$PWD/bin/sirocco
dir=$(mktemp -d /tmp/sirocco-bench-XXXXXX)
export HOME=$dir SIROCCO_CONFIG=$dir/config.json
otlp=127.0.0.1:14317

"$sirocco" up --data "$dir/data" --node-name bench --listen 127.0.0.1:17070 --nats-port 14222 --node-port 17101 \
	--tunnel-port 17443 --tcp-ports 17500-17519 --otlp-endpoint "http://$otlp" >"$dir/log" 2>&1 &
platform=$!
finish() {
	"$sirocco" down --data "$dir/data" >/dev/null 2>&1 || kill "$platform" 2>/dev/null || true
	wait "$platform" 2>/dev/null || true
	rm -rf "$dir"
}
trap finish EXIT
until "$sirocco" node ls >/dev/null 2>&1; do
	if ! kill -0 "$platform" 2>/dev/null; then
		cat "$dir/log" >&2
		exit 1
	fi
	sleep 0.2
done

failed=0
measure() {
	echo "== bench $*"
	"$sirocco" bench "$@" --out "$out" || failed=1
}
measure tti --mode sequential -n 100
measure tti --mode staggered -n 50 --floor 5
"$sirocco" pool set bench --warm 128
for _ in {1..90}; do # as far as the machine's memory goes
	if "$sirocco" pool ls | awk '$1 == "bench" && $8 >= 128 { found = 1 } END { exit !found }'; then break; fi
	sleep 1
done
measure tti --mode burst -n 100 --floor 5
"$sirocco" pool rm bench
measure tti --mode sequential -n 30 --cold --floor 5 --otlp-listen "$otlp"
measure churn --rate 10 --duration 60s --live 20 --floor 5 --otlp-listen "$otlp"
measure density -n 100 --rest 10s --floor 5
measure tunnel --duration 5s --websockets 1000 --floor 0
measure fleet --nodes 50 --live 1000 --churn 10 --duration 20s
exit "$failed"
