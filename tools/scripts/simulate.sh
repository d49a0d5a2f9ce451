#!/usr/bin/env bash
# Runs the property tests with many random histories each:
# simulate.sh <number> <module>... A failing one is printed with its seed, to be
# replayed with -rapid.seed.
set -euo pipefail
cd "$(dirname "$0")/../.."
checks=$1
shift
mapfile -t folders < <(grep -rl --include='*_test.go' '"pgregory.net/rapid"' "$@" | xargs -r dirname | sort -u)
if ((${#folders[@]} == 0)); then
	echo "simulate: no property tests"
	exit 0
fi
failed=0
for folder in "${folders[@]}"; do
	(cd "$folder" && go test -count=1 -timeout 60m . -args -rapid.checks="$checks") || failed=1
done
exit "$failed"
