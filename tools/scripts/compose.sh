#!/usr/bin/env bash
# up: starts compose.yaml, waits until every node is ready, and says how to get in.
# down: ends all sandboxes, then everything, and with the argument "volumes" the
# state as well. What can be set is at the top of compose.yaml; PROFILES=telemetry
# adds the profile.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/scripts/engine.sh
need_engine
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-sirocco}
run=${SIROCCO_RUN:-/run/sirocco}
access=.cache/compose/$COMPOSE_PROJECT_NAME
regions=(eu us)

# container <service> is its id.
container() { compose ps -q "$1" | head -n 1; }

# share_run sees to it that what an agent mounts below /run/sirocco stays when its
# container ends: the folder must be a shared mount, as everything is under systemd.
share_run() {
	[[ -n ${DOCKER_HOST-} && ${DOCKER_HOST-} != unix://* ]] && return
	findmnt -nro PROPAGATION -T "$run" 2>/dev/null | grep -q shared && return
	[[ $(id -u) -eq 0 ]] ||
		say "$run is not on a shared mount, so sandboxes would lose their network when an agent is restarted: run this once as root, or mount --bind $run $run && mount --make-shared $run"
	mkdir -p "$run"
	mountpoint -q "$run" || mount -t tmpfs -o mode=0755,nosuid,nodev,noexec,size=25% sirocco "$run"
	mount --make-shared "$run"
}

# admit <region> writes what a client of the region needs: the authority and a key.
admit() {
	local api dir=$access/$1 port
	api=$(container "api-$1")
	mkdir -p "$dir"
	docker cp "$api:/keys/public-ca.pem" "$dir/ca.pem" >/dev/null
	port=$(docker port "$api" 7070/tcp | head -n 1)
	if [[ ! -s $dir/key || $(cat "$dir/of" 2>/dev/null) != "$(cksum <"$dir/ca.pem")" ]]; then
		(umask 077 && docker exec "$api" /bin/sirocco key create --operator --note compose >"$dir/key")
		cksum <"$dir/ca.pem" >"$dir/of"
	fi
	(umask 077 && printf 'export SIROCCO_API=https://%s SIROCCO_API_KEY=%s SIROCCO_CA=%s\n' "$port" "$(cat "$dir/key")" "$PWD/$dir/ca.pem" >"$dir/env")
}

# nodes <region> is how many of its nodes are ready.
nodes() { (. "$access/$1/env" && docker exec -e SIROCCO_API=https://127.0.0.1:7070 -e SIROCCO_CA=/keys/public-ca.pem -e SIROCCO_API_KEY "$(container "api-$1")" /bin/sirocco node ls 2>/dev/null) | grep -c ' ready ' || true; }

case ${1-} in
up)
	began=$SECONDS profiles=()
	share_run
	for profile in ${PROFILES-}; do profiles+=(--profile "$profile"); done
	compose "${profiles[@]}" up --detach --remove-orphans
	for region in "${regions[@]}"; do
		admit "$region"
		until [[ $(nodes "$region") -ge 2 ]]; do
			((SECONDS - began < 300)) || say "the nodes of $region are not ready after five minutes: docker logs $(container "node-agent-$region-a")"
			sleep 1
		done
		echo "$region is ready after $((SECONDS - began)) s:  . $access/$region/env && bin/sirocco run -- uname -a"
	done
	;;
down)
	for region in "${regions[@]}"; do
		api=$(container "api-$region")
		[[ -z $api ]] || docker exec "$api" /bin/sirocco down --fleet ||
			echo "sirocco: sandboxes of $region may live on; the next compose-up finds them again" >&2
	done
	if [[ ${2-} == volumes ]]; then
		compose --profile telemetry down --remove-orphans --volumes
		rm -rf "$access"
	else
		compose --profile telemetry down --remove-orphans
	fi
	;;
*)
	say "want up or down"
	;;
esac
