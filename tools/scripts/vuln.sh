#!/usr/bin/env bash
# Looks for known vulnerabilities in the code that the modules given as
# arguments really call. GOVULNDB names another database (https:// or
# file://). The public database out of reach is said and is no failure; a
# vulnerability found is one, and so is every other fault.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
db=${GOVULNDB:-https://vuln.go.dev}
govulncheck=$(tools/scripts/tool.sh tools govulncheck)
report=$(mktemp)
trap 'rm -f "$report"' EXIT

# The exit code with which govulncheck tells of what it found.
readonly found=3

failed=0
for module in "$@"; do
	rc=0
	(
		cd "$root/$module"
		# Modules of tools are outside the workspace.
		[[ $module != tools* ]] || export GOWORK=off
		CGO_ENABLED=0 "$govulncheck" -db "$db" ./...
	) >"$report" 2>&1 || rc=$?
	if ((rc == 0)); then
		echo "vulnerabilities in $module: none known"
	elif ((rc == found)); then
		cat "$report"
		failed=1
	elif grep -Eq 'fetching vulnerabilities: .*(dial tcp|dial udp|no such host|i/o timeout|deadline exceeded|TLS handshake timeout|connection (refused|reset)|proxyconnect|unexpected status|unexpected EOF)' "$report"; then
		sed 's/^/  /' "$report"
		echo "vulnerabilities: NOT CHECKED, the database $db is out of reach (GOVULNDB names another)"
		exit "$failed"
	else
		cat "$report" >&2
		echo "sirocco: govulncheck failed in $module." >&2
		failed=1
	fi
done
exit "$failed"
