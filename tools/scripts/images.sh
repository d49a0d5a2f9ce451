#!/usr/bin/env bash
# Makes the container images of the platform from the programs in the folder given
# as the first argument, with the tag given as the second. Each image's context is
# a folder with what it holds and nothing else; nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tools/scripts/engine.sh
need_engine
bin=$1 tag=$2
stage=$(mktemp -d "$bin/../stage.XXXXXX")
trap 'rm -rf "$stage"' EXIT

# image <name> <folders to make>… -- <programs>…: hard links cost nothing.
image() {
	local name=$1 root=$stage/$1
	shift
	for (( ; $# > 0; )); do
		[[ $1 == -- ]] && break
		mkdir -p "$root/$1"
		shift
	done
	shift
	for program in pod "$@"; do
		mkdir -p "$root/bin/$(dirname "$program")"
		ln "$bin/$program" "$root/bin/$program"
	done
	local began=$SECONDS log=$stage/$name.log
	docker build --target "$name" --label "org.opencontainers.image.version=$tag" \
		--tag "sirocco-$name:$tag" --tag "sirocco-$name:dev" --file deployments/docker/Dockerfile "$root" >"$log" 2>&1 ||
		say "the image $name can't be built: $(<"$log")"
	echo "sirocco-$name:$tag, $(docker image inspect --format '{{.Size}}' "sirocco-$name:$tag" | awk '{ printf "%.0f MB", $1 / 1e6 }'), $((SECONDS - began)) s"
}

# The folders are where volumes are mounted: a new volume takes their owner over.
image nats data bus conf -- nats-server
image api keys bus -- api sirocco
image scheduler keys bus -- scheduler
image tunnel-relay keys bus -- tunnel-relay
image reaper keys bus -- reaper
image node --
image node-agent keys bus -- node-agent runsc guest/init guest/base guest/base-net
