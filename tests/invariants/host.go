package invariants

import (
	"fmt"
	"hash/fnv"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/hostcheck"
	"github.com/sirocco-run/sirocco/pkg/network"
)

var idForm = regexp.MustCompile(`sb-[0-9a-z]{26}`)

// Scope is what of this machine belongs to a node's sandboxes.
func Scope(n Node) hostcheck.Scope {
	sandboxes := filepath.Join(n.StateDir, "sandboxes")
	h := fnv.New32a()
	_, _ = h.Write([]byte(sandboxes))
	return hostcheck.Scope{
		CgroupParent: fmt.Sprintf("sirocco-%08x", h.Sum32()), Processes: []string{sandboxes + "/"}, Mounts: []string{sandboxes + "/"},
		Folders: []string{sandboxes, filepath.Join(n.StateDir, "journal"), filepath.Join(network.DefaultStateDir, n.Name, "slots")}, NetNS: []string{n.Name + "-"},
	}
}

// Host compares what is on this machine with the sandboxes that the node says it
// has: nothing belongs to another one, and each has what it needs.
func Host(n Node, ids map[string]bool) []string {
	snap := hostcheck.Take(Scope(n))
	var broken []string
	found := map[string]map[string]bool{}
	for _, kind := range []string{"cgroup", "process", "mount", "file"} {
		found[kind] = map[string]bool{}
		for what := range snap[kind] {
			for _, id := range idForm.FindAllString(what, -1) {
				found[kind][id] = true
				if !ids[id] {
					broken = append(broken, fmt.Sprintf("leak on %s: %s %s", n.Name, kind, short(what)))
				}
			}
		}
	}
	for id := range ids {
		for _, kind := range []string{"cgroup", "process", "file"} {
			if !found[kind][id] {
				broken = append(broken, fmt.Sprintf("%s is on %s without a %s", id, n.Name, kind))
			}
		}
	}
	return broken
}

func short(s string) string {
	if s = strings.TrimSpace(s); len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}
