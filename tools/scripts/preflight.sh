#!/usr/bin/env bash
# Says in one sentence what is missing, and what to do about it; silent when
# nothing is. Without an argument for building; "root": also for running real
# sandboxes; "race": also for tests with the race detector; "disks": also for tests
# that slow down and fill disks.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() {
	echo "sirocco: $*" >&2
	exit 1
}

want=$(awk '$1 == "go" { print $2; exit }' go.mod)

[[ $(uname -s) == Linux ]] ||
	say "this is $(uname -s), and sandboxes need Linux: use a Linux machine or a Linux virtual machine."

command -v go >/dev/null ||
	say "Go is not installed or not in PATH: install Go $want or newer from https://go.dev/dl/ and add its bin folder to PATH."

# Inside the workspace, go itself refuses when it is too old and may not fetch
# a newer toolchain, or fetches it.
if ! have=$(go env GOVERSION 2>&1) || [[ $have != go* && $have != devel* ]]; then
	say "Go is older than $want and could not fetch a newer one: install Go $want or newer from https://go.dev/dl/."
fi
oldest=$(printf '%s\n%s\n' "$want" "${have#go}" | sort -V | head -n 1)
[[ $have == devel* || $oldest == "$want" ]] ||
	say "Go is ${have#go} and Sirocco needs $want: install Go $want or newer from https://go.dev/dl/."

for need in "$@"; do
	case $need in
	root)
		[[ $(id -u) -eq 0 ]] ||
			say "real sandboxes need root (namespaces, cgroups, network): run it as root, or with sudo env \"PATH=\$PATH\" make …"
		;;
	race)
		compiler=$(go env CC)
		command -v "${compiler%% *}" >/dev/null ||
			say "the race detector needs a C compiler and $compiler is not there: install gcc, or name another with CC=…"
		;;
	disks)
		command -v mkfs.ext4 >/dev/null ||
			say "tests with slow and full disks make disks of their own and mkfs.ext4 is not there: install e2fsprogs."
		;;
	esac
done
