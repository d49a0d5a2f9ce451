#!/usr/bin/env bash
# Writes the .proto sources of the Google API annotations below .cache, where
# buf.yaml expects them.
set -euo pipefail
cd "$(dirname "$0")/../../tools"
GOWORK=off GOFLAGS=-mod=readonly CGO_ENABLED=0 go run ./googleapis ../.cache/googleapis
