package invariants

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/hostcheck"
	"github.com/sirocco-run/sirocco/pkg/rundir"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
)

var (
	sandboxForm = regexp.MustCompile(`sb-[0-9a-z]{26}`)
	// A machine is named by an id of its own, because a warm one is there before
	// the sandbox that will have it.
	machineForm = regexp.MustCompile(`(sb|ce)-[0-9a-z]{26}`)
)

// machineKinds are what each machine has one or more of, and what a machine may
// have.
var (
	machineKinds = []string{"cgroup", "process", "file"}
	mayHave      = []string{"cgroup", "process", "file", "mount"}
)

// Scope is what of this machine belongs to a node's sandboxes.
func Scope(n Node) hostcheck.Scope {
	sandboxes := sandboxDir(n)
	h := fnv.New32a()
	_, _ = h.Write([]byte(sandboxes))
	return hostcheck.Scope{
		CgroupParent: fmt.Sprintf("sirocco-%08x", h.Sum32()), Processes: []string{sandboxes + "/"}, Mounts: []string{sandboxes + "/"},
		Folders: []string{sandboxes, journalDir(n), slotDir(n)}, NetNS: []string{},
	}
}

func sandboxDir(n Node) string { return filepath.Join(n.RunDir, "sandboxes") }
func journalDir(n Node) string { return filepath.Join(n.RunDir, "journal") }
func slotDir(n Node) string    { return filepath.Join(rundir.Of(n.Name), "slots") }
func netnsDir(n Node) string   { return filepath.Join(rundir.Of(n.Name), "netns") }

// Host compares what is on this machine with what the node says it has: so many
// machines as sandboxes and warm ones, each whole, and no note of a sandbox that
// is not there.
func Host(n Node, items []*nodev1.InventoryItem, warm int) []string {
	return judgeHost(n, hostcheck.Take(Scope(n)), items, warm)
}

func judgeHost(n Node, snap hostcheck.Snapshot, items []*nodev1.InventoryItem, warm int) []string {
	var broken []string
	ids := map[string]bool{}
	for _, item := range items {
		ids[item.GetId()] = true
	}
	machines := machinesOf(n, snap)
	if len(machines) != len(items)+warm {
		broken = append(broken, fmt.Sprintf("leak on %s: %d machines, for %d sandboxes and %d warm ones", n.Name, len(machines), len(items), warm))
	}
	for _, id := range slices.Sorted(maps.Keys(machines)) {
		if strings.HasPrefix(id, "sb-") && !ids[id] {
			broken = append(broken, fmt.Sprintf("leak on %s: %s of %s", n.Name, strings.Join(slices.Sorted(maps.Keys(machines[id])), ", "), id))
		}
		for _, kind := range machineKinds {
			if !machines[id][kind] {
				broken = append(broken, fmt.Sprintf("%s is on %s without a %s", id, n.Name, kind))
			}
		}
	}
	for file := range snap["file"] {
		if id := sandboxForm.FindString(filepath.Base(file)); filepath.Dir(file) == journalDir(n) && id != "" && !ids[id] {
			broken = append(broken, fmt.Sprintf("leak on %s: note of %s", n.Name, id))
		}
	}
	return broken
}

// MachineOf returns the id by which a sandbox's machine is found on its node, as the
// node's journal has it while the sandbox lives.
func MachineOf(n Node, sandbox string) (string, error) {
	files, err := filepath.Glob(filepath.Join(journalDir(n), sandbox+".*.json"))
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("look up the machine of %s: %w", sandbox, cmp.Or(err, fs.ErrNotExist))
	}
	raw, err := os.ReadFile(files[len(files)-1])
	if err != nil {
		return "", fmt.Errorf("look up the machine of %s: %w", sandbox, err)
	}
	var note struct{ Cell struct{ ID string } }
	if err := json.Unmarshal(raw, &note); err != nil {
		return "", fmt.Errorf("look up the machine of %s: %w", sandbox, err)
	}
	return note.Cell.ID, nil
}

// machinesOf returns the machines that anything on the host is of, with the kinds
// of things.
func machinesOf(n Node, snap hostcheck.Snapshot) map[string]map[string]bool {
	machines := map[string]map[string]bool{}
	for _, kind := range mayHave {
		for what := range snap[kind] {
			if kind == "file" && !strings.HasPrefix(what, sandboxDir(n)+"/") {
				continue
			}
			if id := machineForm.FindString(what); id != "" {
				if machines[id] == nil {
					machines[id] = map[string]bool{}
				}
				machines[id][kind] = true
			}
		}
	}
	return machines
}

// Baseline is what nodes hold on this machine beyond what their machines have: by
// node and kind, how many.
type Baseline map[string]map[string]int

// Baseline looks at the nodes of this machine. Taken before and after anything
// that makes and ends sandboxes, the two are equal (Since).
func (r *Region) Baseline() Baseline {
	b := Baseline{}
	for _, n := range r.nodes {
		if n.RunDir != "" {
			spaces, _ := os.ReadDir(netnsDir(n))
			b[n.Name] = beyond(n, hostcheck.Take(Scope(n)), len(spaces))
		}
	}
	return b
}

// beyond counts what is of no machine, where there are so many network namespaces.
// Each machine has one of them and one note of it; the others are kept ready.
func beyond(n Node, snap hostcheck.Snapshot, spaces int) map[string]int {
	machines := len(machinesOf(n, snap))
	count := map[string]int{"network namespace": spaces - machines}
	for _, kind := range mayHave {
		count[kind] = 0
		for what, times := range snap[kind] {
			inSandboxes := kind != "file" || strings.HasPrefix(what, sandboxDir(n)+"/")
			if inSandboxes && !machineForm.MatchString(what) {
				count[kind] += times
			}
		}
	}
	notes := 0
	for file := range snap["file"] {
		if strings.HasPrefix(file, slotDir(n)+"/") {
			notes++
		}
	}
	count["note of a network slot"] = notes - machines
	return count
}

// Since returns what there is more of than in an earlier baseline, a line each,
// sorted.
func (b Baseline) Since(before Baseline) []string {
	var more []string
	for name, kinds := range b {
		for kind, n := range kinds {
			if was := before[name][kind]; n > was {
				more = append(more, fmt.Sprintf("leak on %s: %s: %d, and %d before", name, kind, n, was))
			}
		}
	}
	slices.Sort(more)
	return more
}

// Machines returns the ids of the machines, warm ones too, of which there is
// anything on this machine.
func Machines(n Node) []string {
	return slices.Sorted(maps.Keys(machinesOf(n, hostcheck.Take(Scope(n)))))
}
