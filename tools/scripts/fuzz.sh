#!/usr/bin/env bash
# Runs each fuzz target of the modules given as arguments for FUZZTIME.
set -euo pipefail
cd "$(dirname "$0")/../.."
time=${FUZZTIME:-10s}
count=0
while IFS=: read -r file line; do
	target=${line#func }
	target=${target%%(*}
	echo "fuzz $target in $(dirname "$file") for $time"
	(cd "$(dirname "$file")" && go test </dev/null -run '^$' -fuzz "^$target\$" -fuzztime "$time" .)
	count=$((count + 1))
done < <(grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*(' "$@" | sort -u)
echo "fuzz: $count targets"
