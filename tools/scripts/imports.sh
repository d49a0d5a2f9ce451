#!/usr/bin/env bash
# Fails when a package depends, however indirectly, on what it must never carry
# along. What a package may name itself is depguard's, in .golangci.yml.
set -euo pipefail
cd "$(dirname "$0")/../.."
failed=0

# pin <package> <pattern of import paths that are refused>
pin() {
	local deps bad
	deps=$(CGO_ENABLED=0 go list -deps "$1")
	if bad=$(grep -Ex "$2" <<<"$deps"); then
		echo "sirocco: $1 must not depend on: ${bad//$'\n'/, }" >&2
		failed=1
	fi
}

edge='(github\.com/nats-io|gvisor\.dev|google\.golang\.org/grpc|github\.com/sirocco-run/sirocco/services)(/.*)?|os/exec'
pin ./pkg/lifecycle "$edge|net|net/http"
pin ./pkg/move "$edge|net|net/http"
pin ./pkg/subject "$edge|net|net/http"
pin ./pkg/sandboxid "$edge|net/http"
pin ./pkg/admission "$edge"
# These run inside every sandbox.
guest='(github\.com/nats-io|gvisor\.dev|google\.golang\.org|connectrpc\.com)(/.*)?|net/http|crypto/tls'
pin ./guest/init "$guest"
# The simulated runtime costs nothing, and the client carries no server.
for package in ./pkg/runtime ./pkg/runtime/sim ./sdk/go/...; do
	[[ -n $(find "${package%/...}" -name '*.go' -print -quit 2>/dev/null) ]] || continue
	pin "$package" '(gvisor\.dev|github\.com/nats-io/nats-server)(/.*)?'
done
((failed == 0)) && echo "imports: nothing carried along"
exit "$failed"
