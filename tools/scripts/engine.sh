# Sourced by the scripts that need a container engine.

say() {
	echo "sirocco: $*" >&2
	exit 1
}

# need_engine ends the script with a sentence where no engine answers.
need_engine() {
	command -v docker >/dev/null || say "docker is not in PATH: install a Docker engine (https://docs.docker.com/engine/install/)."
	docker info >/dev/null 2>&1 || say "no Docker engine answers: start it, or set DOCKER_HOST; you may also lack the right to use it (group docker)."
}

# compose runs the compose tool on compose.yaml. Version 1 does not know the key
# `cgroup`; what it says is the default of engines on cgroups v1, and elsewhere of
# those with --default-cgroupns-mode=host.
compose() {
	if docker compose version >/dev/null 2>&1; then
		docker compose --file compose.yaml "$@"
	elif command -v docker-compose >/dev/null; then
		sed '/^ *cgroup: host$/d' compose.yaml | docker-compose --project-directory "$PWD" --file - "$@"
	else
		say "neither docker compose nor docker-compose is there: install one (https://docs.docker.com/compose/install/)."
	fi
}
