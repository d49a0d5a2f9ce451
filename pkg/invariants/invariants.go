// Package invariants checks what must always hold of a region (see
// docs/architecture.md): the records against what nodes say they run, and that
// against what is really on the machine. Tests and benchmarks run it.
//
// A region in motion breaks some of them for a moment; callers ask again until
// nothing is broken, for as long as the promise allows (Settled does).
package invariants

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/node"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// deadlineGrace is how late a deadline may be applied.
	deadlineGrace = 5 * time.Second
	// askTimeout bounds an ask of a node.
	askTimeout = 5 * time.Second
	// lookEvery is how often Settled looks.
	lookEvery = 100 * time.Millisecond
)

// Node is a node of the region.
type Node struct {
	Name string
	// RunDir is where its agent keeps what lives as long as the sandboxes:
	// rundir.Of, and the state folder of a simulated node. "" for a node whose
	// machine is not looked at.
	RunDir string
}

// Region is what is checked.
type Region struct {
	store *record.Store
	js    jetstream.JetStream
	asks  *node.Client
	nodes []Node
}

// New makes a checker from a connection with the rights of a service.
func New(ctx context.Context, nc *nats.Conn, nodes []Node) (*Region, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	store, err := record.Open(ctx, js)
	if err != nil {
		return nil, err
	}
	return &Region{store: store, js: js, asks: node.NewClient(nc, store, askTimeout), nodes: nodes}, nil
}

// Records returns every record, those of ended sandboxes too.
func (r *Region) Records(ctx context.Context) ([]*siroccov1.Sandbox, error) {
	ctx, cancel := context.WithCancel(ctx)
	view := record.NewView(r.store, record.ViewOptions{KeepEnded: true})
	done := make(chan error, 1)
	go func() { done <- view.Run(ctx) }()
	select {
	case <-view.Ready():
		cancel()
		<-done //nolint:errcheck // it ends because of the cancel: nothing to tell
	case err := <-done:
		cancel()
		return nil, fmt.Errorf("read the records: %w", err)
	}
	var all []*siroccov1.Sandbox
	view.Each(func(sb *siroccov1.Sandbox) bool {
		all = append(all, sb)
		return true
	})
	return all, nil
}

// Broken returns what does not hold now, a line each, sorted; nothing if all
// does. An error to look is a line too.
func (r *Region) Broken(ctx context.Context) []string {
	_, broken := r.look(ctx)
	slices.Sort(broken)
	return broken
}

// look looks once; found is nil if the records could not be read.
func (r *Region) look(ctx context.Context) (found *Found, broken []string) {
	records, err := r.Records(ctx)
	if err != nil {
		return nil, []string{err.Error()}
	}
	broken = Records(records, time.Now())
	warm, err := r.warm(ctx)
	if err != nil {
		broken = append(broken, err.Error())
	}
	inventories, silent := r.Inventories(ctx)
	broken = append(broken, silent...)
	for _, n := range r.nodes {
		if items, ok := inventories[n.Name]; ok && n.RunDir != "" {
			broken = append(broken, Host(n, items, warm[n.Name])...)
		}
	}
	return &Found{records, inventories}, append(broken, Inventories(records, inventories)...)
}

// Inventories returns what each node says that it runs, and a line for each that says
// nothing.
func (r *Region) Inventories(ctx context.Context) (inventories map[string][]*nodev1.InventoryItem, silent []string) {
	inventories = map[string][]*nodev1.InventoryItem{}
	for _, n := range r.nodes {
		items, err := r.asks.Inventory(ctx, n.Name)
		if err != nil {
			silent = append(silent, fmt.Sprintf("%s does not answer: %v", n.Name, err))
			continue
		}
		inventories[n.Name] = items
	}
	return inventories, silent
}

// Settled looks again and again until nothing is broken, for at most limit, and
// returns what was broken last.
func (r *Region) Settled(ctx context.Context, limit time.Duration) []string {
	return settled(ctx, limit, r.Broken)
}

func settled(ctx context.Context, limit time.Duration, look func(context.Context) []string) []string {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	last := []string{fmt.Sprintf("nothing could be looked at within %s", limit)}
	for {
		broken := look(ctx)
		if len(broken) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return last // what was seen while there was time
		}
		last = broken
		select {
		case <-tick.C:
		case <-ctx.Done():
			return last
		}
	}
}

// warm returns how many warm sandboxes each node says that it keeps.
func (r *Region) warm(ctx context.Context) (map[string]int, error) {
	kv, err := r.js.KeyValue(ctx, subject.BucketNodes)
	if err != nil {
		return nil, fmt.Errorf("read the nodes: %w", err)
	}
	keys, err := kv.ListKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the nodes: %w", err)
	}
	defer func() { _ = keys.Stop() }()
	warm := map[string]int{}
	for key := range keys.Keys() {
		entry, err := kv.Get(ctx, key)
		if err != nil {
			continue // it has just expired
		}
		n := &siroccov1.Node{}
		if err := proto.Unmarshal(entry.Value(), n); err != nil {
			return nil, fmt.Errorf("read node %s: %w", key, err)
		}
		for _, count := range n.GetWarm() {
			warm[n.GetName()] += int(count)
		}
	}
	return warm, nil
}

// Inventories compares what nodes run with the records: no orphan, nothing that
// is missing, and no (id, epoch) on two nodes. Nodes without an entry are not
// looked at.
func Inventories(records []*siroccov1.Sandbox, inventories map[string][]*nodev1.InventoryItem) []string {
	var broken []string
	byID := make(map[string]*siroccov1.Sandbox, len(records))
	for _, sb := range records {
		byID[sb.GetId()] = sb
	}
	type execution struct {
		id    string
		epoch uint64
	}
	runs := map[execution]string{}
	for _, name := range slices.Sorted(maps.Keys(inventories)) {
		for _, item := range inventories[name] {
			e := execution{item.GetId(), item.GetEpoch()}
			if other := runs[e]; other != "" {
				broken = append(broken, fmt.Sprintf("%s runs twice at epoch %d: on %s and on %s", e.id, e.epoch, other, name))
			}
			runs[e] = name
			sb := byID[item.GetId()]
			if sb == nil || !lifecycle.Live(sb.GetState()) || sb.GetPlacement().GetNode() != name || sb.GetPlacement().GetEpoch() != item.GetEpoch() {
				broken = append(broken, fmt.Sprintf("orphan: %s runs %s at epoch %d, the record says %v, %v", name, item.GetId(), item.GetEpoch(), sb.GetState(), sb.GetPlacement()))
			}
		}
	}
	for _, sb := range records {
		name, epoch := sb.GetPlacement().GetNode(), sb.GetPlacement().GetEpoch()
		if _, looked := inventories[name]; looked && lifecycle.Live(sb.GetState()) && runs[execution{sb.GetId(), epoch}] != name {
			broken = append(broken, fmt.Sprintf("%s is %v on %s, which does not have it", sb.GetId(), sb.GetState(), name))
		}
	}
	return broken
}

// Records checks the records by themselves: whoever ended has a cause, one key
// and one name are one sandbox's, nothing waits, no deadline is overdue.
func Records(all []*siroccov1.Sandbox, now time.Time) []string {
	var broken []string
	say := func(sb *siroccov1.Sandbox, format string, args ...any) {
		broken = append(broken, sb.GetId()+" "+fmt.Sprintf(format, args...))
	}
	keys := map[string]string{}
	names := map[string]string{}
	for _, sb := range all {
		key := sb.GetTenant() + "/" + sb.GetIdempotencyKey()
		if other := keys[key]; other != "" {
			say(sb, "and %s have one key", other)
		}
		keys[key] = sb.GetId()
		ended := lifecycle.Ended(sb.GetState())
		switch {
		case ended && (sb.GetEnd() == nil || sb.GetEnd().GetCause() == siroccov1.Cause_CAUSE_UNSPECIFIED):
			say(sb, "has ended without a cause")
		case !ended && sb.GetEnd() != nil:
			say(sb, "is %v and has an end", sb.GetState())
		case !ended && sb.GetState() != siroccov1.State_STATE_RUNNING:
			say(sb, "is %v: not settled", sb.GetState())
		case !ended && sb.GetDesired().GetStop():
			say(sb, "runs and is to stop")
		}
		if ended {
			continue
		}
		if late := now.Sub(sb.GetDesired().GetDeadline().AsTime()); late > deadlineGrace {
			say(sb, "lives %v after its deadline", late)
		}
		if name := sb.GetSpec().GetName(); name != "" {
			if other := names[sb.GetTenant()+"/"+name]; other != "" {
				say(sb, "and %s have one name", other)
			}
			names[sb.GetTenant()+"/"+name] = sb.GetId()
		}
	}
	return broken
}

// Summary is at most n of the lines, and how many more there are.
func Summary(broken []string, n int) string {
	if len(broken) > n {
		broken = append(slices.Clone(broken[:n]), fmt.Sprintf("… and %d more", len(broken)-n))
	}
	return strings.Join(broken, "\n")
}
