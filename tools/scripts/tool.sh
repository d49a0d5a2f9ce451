#!/usr/bin/env bash
# Prints the path of a pinned tool's program, building it into Go's cache when
# needed: tool.sh <folder of its go.mod> <name>.
#
# Tools have modules of their own, one for each set of dependencies that do not
# agree, and so stay outside the workspace; the program that is printed may be
# run inside it.
set -euo pipefail
cd "$(dirname "$0")/../.."
GOWORK=off GOFLAGS=-mod=readonly CGO_ENABLED=0 exec go tool -modfile="$1/go.mod" -n "$2"
