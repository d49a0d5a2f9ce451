#!/usr/bin/env bash
# Runs the simulation and the property tests with many random histories each:
# simulate.sh <number> <module>... A failing one is printed with its seed: that of the
# simulation is replayed with simulate.sh seed <seed>, those of others with -rapid.seed.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ $1 == seed ]]; then
	cd tests/simulation
	SIROCCO_SEED=$2 exec go test -count=1 -v -run '^TestHistoriesKeepTheInvariants$' .
fi
checks=$1
shift
failed=0
(cd tests/simulation && SIROCCO_SEEDS=$checks go test -count=1 -timeout 0 .) || failed=1
mapfile -t folders < <(grep -rl --include='*_test.go' '"pgregory.net/rapid"' "$@" | xargs -r dirname | sort -u)
if ((${#folders[@]} == 0)); then
	echo "simulate: no property tests"
	exit "$failed"
fi
for folder in "${folders[@]}"; do
	(cd "$folder" && go test -count=1 -timeout 60m . -args -rapid.checks="$checks") || failed=1
done
exit "$failed"
