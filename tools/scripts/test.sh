#!/usr/bin/env bash
# Runs every test of the modules given as arguments with the race detector, in
# four groups, all of them even when one fails. Flags for go test come from
# TEST_FLAGS.
#
# Packages without real sandboxes share the cores. Those with real ones count
# what is on the machine and measure times, and so go one after another with
# nothing beside them; a package is one of those when its tests import
# gvisortest, or when it is in the module tests. The simulation runs one thing at a
# time: the race detector would find nothing in it, and take ten times as long.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CGO_ENABLED=1 SIROCCO_BIN=$PWD/bin SIROCCO_RUNSC=$PWD/bin/runsc
read -ra flags <<<"${TEST_FLAGS-}"

# "<package> real" or "<package> light", one to a line.
kinds='{{$kind := "light"}}{{$real := "github.com/sirocco-run/sirocco/pkg/runtime/gvisor/gvisortest"}}'
kinds+='{{range .TestImports}}{{if eq . $real}}{{$kind = "real"}}{{end}}{{end}}'
kinds+='{{range .XTestImports}}{{if eq . $real}}{{$kind = "real"}}{{end}}{{end}}'
kinds+='{{.ImportPath}} {{$kind}}'

light=() simulated=() real=() end=()
for module in "$@"; do
	packages=$(go list -f "$kinds" "./$module/...")
	while read -r package kind; do
		case $module/$kind in
		tests/*) [[ $package == */tests/simulation ]] && simulated+=("$package") || end+=("$package") ;;
		*/real) real+=("$package") ;;
		*) light+=("$package") ;;
		esac
	done <<<"$packages"
done

failed=0
# group <title> <packages at once> <flag of the race detector> <package>...
group() {
	local title=$1 at_once=$2 race=$3 from=$SECONDS
	shift 3
	(($# > 0)) || return 0
	echo "== $title: $# packages"
	go test "$race" -count=1 -timeout 20m -p "$at_once" "${flags[@]}" "$@" || failed=1
	echo "== $title: $((SECONDS - from)) s"
}
group "packages and services" 2 -race "${light[@]}"
group "simulation" 1 -race=false "${simulated[@]}"
group "with real sandboxes" 1 -race "${real[@]}"
group "end to end" 1 -race "${end[@]}"
exit "$failed"
