package invariants

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/hostcheck"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	one, two = "sb-06efxypt7nrtx3mc81sgr4w2xm", "sb-06efxypt7nrtx3mc81sgr4w2xn"
	cell     = "ce-06efxypt7nrtx3mc81sgr4w2xo"
)

func running(id string) *siroccov1.Sandbox {
	return &siroccov1.Sandbox{
		Id: id, Tenant: "t", State: siroccov1.State_STATE_RUNNING, IdempotencyKey: "key of " + id, Spec: &siroccov1.CreateSandboxRequest{Name: "name of " + id},
		Desired:   &siroccov1.Desired{Deadline: timestamppb.New(time.Now().Add(time.Hour))},
		Placement: &siroccov1.Placement{Node: "node-1", Epoch: 1},
	}
}

// expect checks that each of the wanted texts is in a line of its own, and that
// there are no others.
func expect(t *testing.T, name string, broken []string, want ...string) {
	t.Helper()
	if len(broken) != len(want) {
		t.Errorf("%s: %d lines, want %d: %q", name, len(broken), len(want), broken)
	}
	for _, w := range want {
		if !slices.ContainsFunc(broken, func(line string) bool { return strings.Contains(line, w) }) {
			t.Errorf("%s: no %q in %q", name, w, broken)
		}
	}
}

func TestRecordsByThemselves(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(a, b *siroccov1.Sandbox)
		want  []string
	}{
		"all is well":      {func(_, _ *siroccov1.Sandbox) {}, nil},
		"one key":          {func(a, b *siroccov1.Sandbox) { a.IdempotencyKey = b.IdempotencyKey }, []string{"have one key"}},
		"one name":         {func(a, b *siroccov1.Sandbox) { a.Spec.Name = b.Spec.Name }, []string{"have one name"}},
		"no cause":         {func(a, _ *siroccov1.Sandbox) { a.State = siroccov1.State_STATE_STOPPED }, []string{"without a cause"}},
		"an end too early": {func(a, _ *siroccov1.Sandbox) { a.End = &siroccov1.End{} }, []string{"has an end"}},
		"waiting":          {func(a, _ *siroccov1.Sandbox) { a.State = siroccov1.State_STATE_PLACED }, []string{"not settled"}},
		"not obeyed":       {func(a, _ *siroccov1.Sandbox) { a.Desired.Stop = true }, []string{"is to stop"}},
		"overdue": {func(a, _ *siroccov1.Sandbox) {
			a.Desired.Deadline = timestamppb.New(time.Now().Add(-time.Minute))
		}, []string{"after its deadline"}},
	} {
		a, b := running(one), running(two)
		c.spoil(a, b)
		expect(t, name, Records([]*siroccov1.Sandbox{a, b}, time.Now()), c.want...)
	}
}

func TestRecordsAgainstInventories(t *testing.T) {
	item := func(id string, epoch uint64) *nodev1.InventoryItem {
		return &nodev1.InventoryItem{Id: id, Epoch: epoch}
	}
	records := []*siroccov1.Sandbox{running(one)}
	for name, c := range map[string]struct {
		nodes map[string][]*nodev1.InventoryItem
		want  []string
	}{
		"all is well":     {map[string][]*nodev1.InventoryItem{"node-1": {item(one, 1)}, "node-2": nil}, nil},
		"not looked at":   {map[string][]*nodev1.InventoryItem{"node-2": nil}, nil},
		"missing":         {map[string][]*nodev1.InventoryItem{"node-1": nil}, []string{"does not have it"}},
		"an old epoch":    {map[string][]*nodev1.InventoryItem{"node-1": {item(one, 0)}}, []string{"orphan", "does not have it"}},
		"without record":  {map[string][]*nodev1.InventoryItem{"node-1": {item(one, 1), item(two, 1)}}, []string{"orphan"}},
		"twice":           {map[string][]*nodev1.InventoryItem{"node-1": {item(one, 1)}, "node-2": {item(one, 1)}}, []string{"runs twice", "orphan", "does not have it"}},
		"on another node": {map[string][]*nodev1.InventoryItem{"node-1": nil, "node-2": {item(one, 1)}}, []string{"orphan", "does not have it"}},
	} {
		expect(t, name, Inventories(records, c.nodes), c.want...)
	}
}

func TestHostAgainstInventory(t *testing.T) {
	n := Node{Name: "node-1", RunDir: "/run/n"}
	dir := filepath.Join(n.RunDir, "sandboxes")
	whole := func(snap hostcheck.Snapshot, id string) {
		for kind, what := range map[string]string{"cgroup": "/sys/fs/cgroup/p/" + id, "process": "12 runsc " + dir + "/" + id + "/x", "file": dir + "/" + id} {
			snap[kind][what] = 1
		}
	}
	for name, c := range map[string]struct {
		build func(hostcheck.Snapshot)
		live  []string
		warm  int
		want  []string
	}{
		"nothing":         {func(hostcheck.Snapshot) {}, nil, 0, nil},
		"one and warm":    {func(s hostcheck.Snapshot) { whole(s, one); whole(s, cell) }, []string{one}, 1, nil},
		"a cell too much": {func(s hostcheck.Snapshot) { whole(s, cell) }, nil, 0, []string{"1 machines, for 0 sandboxes and 0 warm"}},
		"a cell missing":  {func(hostcheck.Snapshot) {}, []string{one}, 0, []string{"0 machines, for 1 sandboxes"}},
		"a leaked one":    {func(s hostcheck.Snapshot) { whole(s, one) }, nil, 0, []string{"1 machines", "cgroup, file, process of " + one}},
		"without process": {func(s hostcheck.Snapshot) { whole(s, cell); clear(s["process"]) }, nil, 1, []string{"without a process"}},
		"a note":          {func(s hostcheck.Snapshot) { s["file"][n.RunDir+"/journal/"+one+".2.json"] = 1 }, nil, 0, []string{"note of " + one}},
	} {
		snap := hostcheck.Snapshot{"cgroup": {}, "process": {}, "file": {}, "mount": {}}
		c.build(snap)
		var items []*nodev1.InventoryItem
		for _, id := range c.live {
			items = append(items, &nodev1.InventoryItem{Id: id})
		}
		expect(t, name, judgeHost(n, snap, items, c.warm), c.want...)
	}
}

// What belongs to machines comes and goes with them; what is beyond must not grow.
func TestBaseline(t *testing.T) {
	n := Node{Name: "node-1", RunDir: "/run/n"}
	dir := filepath.Join(n.RunDir, "sandboxes")
	empty := hostcheck.Snapshot{"file": {dir + "/.lock": 1}}
	before := Baseline{n.Name: beyond(n, empty, 32)}
	busy := hostcheck.Snapshot{"file": {dir + "/.lock": 1, dir + "/" + cell: 1, slotDir(n) + "/" + cell: 1}}
	expect(t, "busy", Baseline{n.Name: beyond(n, busy, 33)}.Since(before))
	leaky := hostcheck.Snapshot{"file": {dir + "/.lock": 1, dir + "/left": 1, slotDir(n) + "/" + cell: 1}}
	expect(t, "leaky", Baseline{n.Name: beyond(n, leaky, 33)}.Since(before), "network namespace: 33, and 32 before", "file: 2, and 1 before", "note of a network slot: 1, and 0 before")
}
