#!/usr/bin/env bash
# Generates the Go code and the OpenAPI document from proto/ into the
# repository, or below the folder given as argument. What is there stays until
# everything has been generated well.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-.}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

buf=$(tools/scripts/tool.sh tools/buf buf)
tools/scripts/googleapis.sh
# The plugins are run by buf through `go tool`, outside the workspace.
GOWORK=off GOFLAGS=-mod=readonly CGO_ENABLED=0 "$buf" generate --output "$scratch"

mkdir -p "$out/proto" "$out/docs/api"
rm -rf "$out/proto/gen"
cp -r "$scratch/proto/gen" "$out/proto/gen"
cp "$scratch/docs/api/openapi.yaml" "$out/docs/api/openapi.yaml"
