#!/usr/bin/env bash
# Generates the Go code and the OpenAPI document from proto/ into the
# repository, or below the folder given as argument.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-.}

buf=$(tools/scripts/tool.sh tools/buf buf)
tools/scripts/googleapis.sh
mkdir -p "$out"
rm -rf "$out/proto/gen"
# The plugins are run by buf through `go tool`, outside the workspace.
GOWORK=off GOFLAGS=-mod=readonly CGO_ENABLED=0 "$buf" generate --output "$out"
