// Package invariants checks what must always hold of a region (see
// docs/architecture.md): the records against what nodes say they run, and that
// against what is really on the machine. Tests and benchmarks run it.
//
// A region in motion breaks some of them for a moment; callers ask again until
// nothing is broken, for as long as the promise allows.
package invariants

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/node"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// deadlineGrace is how late a deadline may be applied.
const deadlineGrace = 5 * time.Second

// Node is a node of this machine.
type Node struct {
	Name string
	// StateDir is the node-agent's --state-dir; "" for a node whose machine is
	// not looked at, such as a simulated one.
	StateDir string
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
	return &Region{store: store, js: js, asks: node.NewClient(nc, store, 2*time.Second), nodes: nodes}, nil
}

// Records returns every record.
func (r *Region) Records(ctx context.Context) ([]*siroccov1.Sandbox, error) {
	kv, err := r.js.KeyValue(ctx, subject.BucketSandboxes)
	if err != nil {
		return nil, err
	}
	keys, err := kv.Keys(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrNoKeysFound) {
		return nil, err
	}
	var all []*siroccov1.Sandbox
	for _, key := range keys {
		tenant, id, err := subject.ParseRecordKey(key)
		if err != nil {
			return nil, err
		}
		sb, err := r.store.Get(ctx, tenant, id)
		if err != nil {
			return nil, err
		}
		all = append(all, sb)
	}
	return all, nil
}

// Broken returns what does not hold now, a line each; nothing if all does. An
// error to look is a line too.
func (r *Region) Broken(ctx context.Context) []string {
	records, err := r.Records(ctx)
	if err != nil {
		return []string{"read the records: " + err.Error()}
	}
	broken := Records(records, time.Now())
	running := map[string][]*siroccov1.Sandbox{}
	byID := map[string]*siroccov1.Sandbox{}
	for _, sb := range records {
		byID[sb.GetId()] = sb
		if lifecycle.Live(sb.GetState()) {
			running[sb.GetPlacement().GetNode()] = append(running[sb.GetPlacement().GetNode()], sb)
		}
	}
	for _, n := range r.nodes {
		items, err := r.asks.Inventory(ctx, n.Name)
		if err != nil {
			broken = append(broken, fmt.Sprintf("%s does not answer: %v", n.Name, err))
			continue
		}
		ids := map[string]bool{}
		for _, item := range items {
			ids[item.GetId()] = true
			sb := byID[item.GetId()]
			if sb == nil || !lifecycle.Live(sb.GetState()) || sb.GetPlacement().GetNode() != n.Name || sb.GetPlacement().GetEpoch() != item.GetEpoch() {
				broken = append(broken, fmt.Sprintf("orphan: %s runs %s at epoch %d, the record says %v, %v", n.Name, item.GetId(), item.GetEpoch(), sb.GetState(), sb.GetPlacement()))
			}
		}
		for _, sb := range running[n.Name] {
			if !ids[sb.GetId()] {
				broken = append(broken, fmt.Sprintf("%s is %v on %s, which does not have it", sb.GetId(), sb.GetState(), n.Name))
			}
		}
		if n.StateDir != "" {
			broken = append(broken, Host(n, ids)...)
		}
	}
	slices.Sort(broken)
	return broken
}

// Records checks the records by themselves.
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
