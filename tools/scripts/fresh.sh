#!/usr/bin/env bash
# Fails when the committed generated code is not what `make generate` makes.
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

tools/scripts/generate.sh "$scratch"
for made in proto/gen docs/api/openapi.yaml; do
	if ! diff -r --brief "$made" "$scratch/$made"; then
		echo "sirocco: $made is stale: run make generate and commit what it changes." >&2
		exit 1
	fi
done
echo "generated code: fresh"
