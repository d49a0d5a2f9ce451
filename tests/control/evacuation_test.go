package control

import (
	"fmt"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/evacuation"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/tests/harness"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// drain orders that a node is emptied, as the api does.
func drain(t *testing.T, r *harness.Region, req *siroccov1.DrainNodeRequest) *evacuation.Store {
	t.Helper()
	orders, err := r.JS.KeyValue(t.Context(), subject.BucketNodeOrders)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(&siroccov1.Node{Name: req.GetName(), Region: "eu", Cordoned: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := orders.Put(t.Context(), subject.NodeKey("eu", req.GetName()), raw); err != nil {
		t.Fatal(err)
	}
	store, err := evacuation.Open(t.Context(), r.JS)
	if err != nil {
		t.Fatal(err)
	}
	order, err := evacuation.OfNode(req, "eu", "ops", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Order(t.Context(), order); err != nil {
		t.Fatal(err)
	}
	return store
}

// A drained node ends empty: what it ran goes on on another one, at the next epoch, and
// nothing was evicted. The first scheduler that drives it ends in the middle.
func TestDrainMovesAll(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	first := r.Scheduler("s1")
	r.SimNode("n1", nil)
	const n = 40
	ids := map[string]bool{}
	for i := range n {
		command(t, r, subject.VerbCreate, fmt.Sprint("k", i), &siroccov1.CreateSandboxRequest{Command: []string{"sleep", "infinity"}})
	}
	for i := range n {
		id := idOf(t, r, fmt.Sprint("k", i))
		await(t, r, id, "running", running)
		ids[id] = true
	}
	r.SimNode("n2", nil)
	store := drain(t, r, &siroccov1.DrainNodeRequest{Name: "n1", Over: durationpb.New(3 * time.Second), EvictAfter: durationpb.New(time.Hour), AtOnce: 8})
	var e *siroccov1.Evacuation
	until := func(what string, holds func() bool) {
		t.Helper()
		harness.Eventually(t, 60*time.Second, func() string {
			var err error
			if e, _, err = store.Get(t.Context(), "eu", "n1"); err != nil {
				return err.Error()
			}
			if !holds() {
				return what + ": " + e.String()
			}
			return ""
		})
	}
	until("some moved", func() bool { return e.GetMoved() > 4 })
	r.Scheduler("s2")
	first.Stop()
	until("over", func() bool { return evacuation.Over(e) })
	if e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_DONE || e.GetMoved() != n || e.GetHere() != 0 {
		t.Errorf("it ended as %v", e)
	}
	for id := range ids {
		sb, err := r.Store.Get(t.Context(), "acme", id)
		if err != nil {
			t.Fatal(err)
		}
		if !running(sb) || sb.GetPlacement().GetNode() != "n2" || sb.GetPlacement().GetEpoch() < 2 || sb.GetDesired().GetEvictAt() != nil {
			t.Errorf("%s: %v, %v, %v", id, sb.GetState(), sb.GetPlacement(), sb.GetMove())
		}
	}
}

// Where no node takes them, sandboxes are tried again, the order says why, and at its
// deadline they get their notice and are evicted.
func TestDrainEvictsWhatCanNotMove(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	r.SimNode("n1", nil, func(c *agent.Config) { c.EvictionNotice = 500 * time.Millisecond })
	command(t, r, subject.VerbCreate, "k", &siroccov1.CreateSandboxRequest{Command: []string{"sleep", "infinity"}})
	id := idOf(t, r, "k")
	await(t, r, id, "running", running)
	store := drain(t, r, &siroccov1.DrainNodeRequest{
		Name: "n1", Over: durationpb.New(0), MaxErrorRate: proto.Float64(1), EvictAfter: durationpb.New(15 * time.Second),
	})
	harness.Eventually(t, 60*time.Second, func() string {
		e, _, err := store.Get(t.Context(), "eu", "n1")
		if err != nil {
			return err.Error()
		}
		if e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_WAITING {
			return e.String()
		}
		if evacuation.Left(e) != 1 || e.GetLeft()[0].GetCode() != "no_capacity" {
			t.Errorf("it waits with %v", e)
		}
		return ""
	})
	sb := await(t, r, id, "evicted", func(sb *siroccov1.Sandbox) bool { return sb.GetEnd() != nil })
	if sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_EVICTED {
		t.Errorf("it ended by %v", sb.GetEnd())
	}
	harness.Eventually(t, 20*time.Second, func() string {
		e, _, err := store.Get(t.Context(), "eu", "n1")
		if err != nil || e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_DONE {
			return fmt.Sprint(e, err)
		}
		return ""
	})
}
