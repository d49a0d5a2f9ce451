#!/usr/bin/env bash
# Measures what `bench tti --mode sequential` measures with `docker run`, once on
# runc and once on runsc (gVisor), and writes the times into the folder given as
# the first argument; the second is how many. It installs nothing: it says what
# is missing, and then exits with 1.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$1 n=$2 image=${IMAGE:-busybox:latest}

say() {
	echo "sirocco: $*" >&2
	exit 1
}
command -v docker >/dev/null || say "docker is not in PATH: install a Docker engine (https://docs.docker.com/engine/install/) to compare with it."
docker info >/dev/null 2>&1 || say "no Docker engine answers: start it, or set DOCKER_HOST."
docker image inspect "$image" >/dev/null 2>&1 || say "the image $image is not on this machine: docker pull $image, or name another with IMAGE=."

missing=()
mkdir -p "$out"
for runtime in runc runsc; do
	if ! docker info --format '{{range $name, $_ := .Runtimes}}{{println $name}}{{end}}' | grep -qx "$runtime"; then
		missing+=("$runtime")
		continue
	fi
	times=()
	for ((i = 0; i < n; i++)); do
		from=$(date +%s%N)
		[[ $(docker run --rm --runtime "$runtime" "$image" echo ready) == ready ]] || say "docker run on $runtime answered something else."
		times+=($((($(date +%s%N) - from) / 10000)))
		printf '\r%s: %d of %d' "$runtime" $((i + 1)) "$n" >&2
	done
	echo >&2
	printf '%s\n' "${times[@]}" | sort -n | awk -v name="docker-$runtime" -v file="$out/docker-$runtime.json" '
		{ t[NR] = $1 / 100; sum += $1 / 100 }
		function rank(p, i) { i = int(p * NR); if (i < p * NR) i++; return t[i < 1 ? 1 : i] }
		END {
			printf "%s: docker run until the command has ended: p50 %.0f ms, p95 %.0f ms, p99 %.0f ms\n", name, rank(.5), rank(.95), rank(.99)
			printf "{\n  \"name\": \"%s\",\n  \"about\": \"docker run, one after the other, until the command has ended and the container is removed\",\n", name > file
			printf "  \"times\": [{\"name\": \"docker run\", \"n\": %d, \"min\": %.2f, \"p50\": %.2f, \"p95\": %.2f, \"p99\": %.2f, \"max\": %.2f, \"mean\": %.2f}]\n}\n", NR, t[1], rank(.5), rank(.95), rank(.99), t[NR], sum / NR > file
		}'
done
((${#missing[@]} == 0)) || say "the Docker engine has no runtime ${missing[*]}: see https://gvisor.dev/docs/user_guide/install/ (runsc install), then restart it."
