#!/usr/bin/env bash
# Compares the contract with its last release (the last tag before HEAD) or,
# while there is none, with the main branch, and fails on a change that breaks
# clients. BREAKING_AGAINST=<commit> chooses another base. A break on purpose
# is a commit since the base whose message has the trailer
# "Contract-Break: <why>"; it is then reported and allowed.
set -euo pipefail
cd "$(dirname "$0")/../.."

commit() { git rev-parse --verify --quiet "$1^{commit}" 2>/dev/null; }

# What to compare with; empty when there is nothing.
base() {
	local ref tag head
	if [[ -n ${BREAKING_AGAINST-} ]]; then
		commit "$BREAKING_AGAINST" || {
			echo "sirocco: BREAKING_AGAINST=$BREAKING_AGAINST is no commit here: fetch it first." >&2
			return 1
		}
		return
	fi
	head=$(commit HEAD) || return 0
	if tag=$(git describe --tags --abbrev=0 HEAD^ 2>/dev/null); then
		commit "$tag"
		return
	fi
	for ref in origin/main main; do
		if ref=$(commit "$ref") && ref=$(git merge-base "$ref" HEAD 2>/dev/null); then
			# On main itself: what the last commit changed, unless
			# changes wait to be committed.
			if [[ $ref == "$head" && -z $(git status --porcelain -- proto) ]]; then
				commit HEAD^ || true
			else
				echo "$ref"
			fi
			return
		fi
	done
	commit HEAD^ || true
}

if ! git rev-parse --git-dir >/dev/null 2>&1; then
	echo "contract: not a git repository, so there is nothing to compare with"
	exit 0
fi
against=$(base)
if [[ -z $against ]]; then
	echo "contract: no earlier commit to compare with"
	exit 0
fi
if [[ -z $(git ls-tree -r --name-only "$against" -- proto | grep '\.proto$' || true) ]]; then
	echo "contract: $(git rev-parse --short "$against") has no contract to compare with"
	exit 0
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
buf=$(tools/scripts/tool.sh tools/buf buf)
tools/scripts/googleapis.sh
git archive "$against" -- proto | tar -x -C "$scratch"
mkdir -p "$scratch/.cache"
cp buf.yaml "$scratch/"
cp -r .cache/googleapis "$scratch/.cache/"

if "$buf" breaking --against "$scratch"; then
	echo "contract: nothing broken since $(git rev-parse --short "$against")"
	exit 0
fi
why=$(git log --format='%(trailers:key=Contract-Break,valueonly,separator=%x2C )' "$against..HEAD" | sed '/^$/d')
if [[ -n $why ]]; then
	echo "contract: broken on purpose since $(git rev-parse --short "$against"): $why"
	exit 0
fi
echo "sirocco: the contract breaks clients of $(git rev-parse --short "$against"): keep it compatible, or see CONTRIBUTING.md on breaks." >&2
exit 1
