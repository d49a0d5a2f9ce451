package regions

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/invariants"
	"github.com/sirocco-run/sirocco/pkg/record"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/types/known/durationpb"
)

// traveller is a sandbox that moves, as the api of each region sees it.
type traveller struct {
	id    string
	c     [2]*sirocco.Client
	began *siroccov1.Sandbox
	// at is the index of the region where it is, home of that where it was made.
	at, home int
	moved    bool
}

// travel makes a sandbox that may be in either region.
func travel(t *testing.T, req *siroccov1.CreateSandboxRequest) *traveller {
	t.Helper()
	bothServe(t)
	tr := &traveller{c: [2]*sirocco.Client{client(t, eu, ""), client(t, us, "")}}
	req.MaxLifetime = durationpb.New(time.Hour)
	tr.began = create(t, tr.c[eu], req)
	tr.id = tr.began.GetId()
	if tr.began.GetPlacement().GetRegion() == "us" {
		tr.at = us
	}
	tr.home = tr.at
	return tr
}

func name(region int) string { return []string{"eu", "us"}[region] }

// move has it moved to the other region through one of the apis, by its id or name.
func (tr *traveller) move(t *testing.T, through int, by string) {
	t.Helper()
	to := 1 - tr.at
	sb, err := tr.c[through].Sandbox(by).Migrate(t.Context(), name(to), "")
	if err != nil {
		t.Fatalf("move %s to %s through %s: %v", by, name(to), name(through), err)
	}
	if sb.GetId() != tr.id || sb.GetPlacement().GetRegion() != name(to) || sb.GetState() != siroccov1.State_STATE_RUNNING {
		t.Fatalf("after the move to %s it is %v", name(to), sb)
	}
	tr.at, tr.moved = to, true
}

// seen waits until both apis see it as wanted, by its id.
func (tr *traveller) seen(t *testing.T, what string, want func(*siroccov1.Sandbox) bool) {
	t.Helper()
	for i, c := range tr.c {
		platform.Eventually(t, 15*time.Second, func() string {
			sb, err := c.Get(t.Context(), tr.id)
			if err != nil {
				return err.Error()
			}
			if !want(sb) {
				return fmt.Sprintf("%s sees no %s: %v", name(i), what, sb)
			}
			return ""
		})
	}
	// What its record is in the bucket of each region follows, if it is in the other one.
	for i := range tr.c {
		if !tr.moved {
			return
		}
		_, js := jetStream(t, world, i)
		store, err := record.Open(t.Context(), js)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		platform.Eventually(t, 15*time.Second, func() string {
			sb, err := store.Get(t.Context(), platform.Tenant, tr.id)
			if err != nil {
				return err.Error()
			}
			if !want(sb) {
				return fmt.Sprintf("the bucket of %s holds no %s: %v", name(i), what, sb)
			}
			return ""
		})
		if i != tr.at {
			t.Logf("%s: the record that stayed behind was up to date within %v", what, time.Since(began).Round(time.Millisecond))
		}
	}
}

// alone checks that nothing of a sandbox runs but where it is.
func (tr *traveller) alone(t *testing.T) {
	t.Helper()
	platform.Eventually(t, 15*time.Second, func() string {
		var where []string
		for i, ready := range world.Ready {
			nc, _ := jetStream(t, world, i)
			var all []invariants.Node
			for _, n := range nodesOf(t, tr.c[i]) {
				all = append(all, invariants.Node{Name: n})
			}
			region, err := invariants.New(t.Context(), nc, all)
			if err != nil {
				t.Fatal(err)
			}
			inventories, silent := region.Inventories(t.Context())
			if len(silent) > 0 {
				return strings.Join(silent, "\n")
			}
			for node, items := range inventories {
				for _, item := range items {
					if item.GetId() == tr.id {
						where = append(where, ready.Region+"/"+node)
					}
				}
			}
		}
		if len(where) != 1 || !strings.HasPrefix(where[0], name(tr.at)+"/") {
			return fmt.Sprintf("it runs on %v", where)
		}
		return ""
	})
}

// TestMovesAbroad: a sandbox moves to the other region and back, by name and by id,
// through either api. Both find and change it wherever it is.
func TestMovesAbroad(t *testing.T) {
	tr := travel(t, &siroccov1.CreateSandboxRequest{Name: "nomad", Tags: map[string]string{"trip": "1"}, Ports: []*siroccov1.Port{{Port: 8000}}})
	for i, by := range []string{"nomad", tr.id, tr.id, "nomad"} {
		tr.move(t, i%2, by)
		epoch := uint64(i) + 2
		tr.seen(t, "the move", func(sb *siroccov1.Sandbox) bool {
			return sb.GetPlacement().GetRegion() == name(tr.at) && sb.GetPlacement().GetEpoch() == epoch && sb.GetState() == siroccov1.State_STATE_RUNNING &&
				sb.GetSpec().GetName() == "nomad" && sb.GetTunnels()[0].GetUrl() == tr.began.GetTunnels()[0].GetUrl() &&
				sb.GetDesired().GetDeadline().AsTime().Equal(tr.began.GetDesired().GetDeadline().AsTime())
		})
		for k, c := range tr.c {
			if sb, err := c.Get(t.Context(), "nomad"); err != nil || sb.GetId() != tr.id {
				t.Errorf("by its name, in %s, after move %d: %v", name(k), i+1, err)
			}
			listed := 0
			for sb, err := range c.List(t.Context(), &siroccov1.ListSandboxesRequest{Tags: []string{"trip=1"}}) {
				if err != nil {
					t.Fatal(err)
				}
				if sb.GetId() == tr.id {
					listed++
				}
			}
			if listed != 1 {
				t.Errorf("%s lists it %d times after move %d", name(k), listed, i+1)
			}
		}
		tr.alone(t)
		if out, err := world.CLI(t.Context(), "exec", tr.id, "--", "echo", "still here"); err != nil {
			t.Errorf("a command after move %d: %v: %s", i+1, err, out)
		}
	}
	tr.move(t, tr.home, tr.id)
	first := tr.c[tr.home].Sandbox(tr.id)
	if _, err := first.Extend(t.Context(), 2*time.Hour); err != nil {
		t.Fatalf("extend it through the first region: %v", err)
	}
	if _, err := first.SetTags(t.Context(), map[string]string{"trip": "2"}); err != nil {
		t.Fatalf("tag it through the first region: %v", err)
	}
	tr.seen(t, "changes", func(sb *siroccov1.Sandbox) bool {
		return time.Until(sb.GetDesired().GetDeadline().AsTime()) > 110*time.Minute && maps.Equal(sb.GetSpec().GetTags(), map[string]string{"trip": "2"})
	})
	// A command that is published where it was follows it.
	_, js := jetStream(t, world, tr.home)
	body, err := json.Marshal(map[string]any{"id": tr.id, "tags": map[string]string{"trip": "3"}})
	if err != nil {
		t.Fatal(err)
	}
	key := fmt.Sprint("follow-", time.Now().UnixNano())
	for range 2 {
		msg := nats.NewMsg("sirocco.cmd." + platform.Tenant + ".sandbox.set-tags." + key)
		msg.Data = body
		msg.Header.Set("Content-Type", "application/json")
		if _, err := js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	tr.seen(t, "what was published", func(sb *siroccov1.Sandbox) bool {
		return maps.Equal(sb.GetSpec().GetTags(), map[string]string{"trip": "3"})
	})
	if sb, err := first.Terminate(t.Context(), "home"); err != nil || sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_USER {
		t.Errorf("end it through the first region: %v, %v", sb.GetEnd(), err)
	}
	tr.seen(t, "end", func(sb *siroccov1.Sandbox) bool { return sb.GetEnd().GetMessage() == "home" })
	again := create(t, tr.c[tr.home], &siroccov1.CreateSandboxRequest{Name: "nomad", Regions: []string{name(tr.home)}})
	if again.GetId() == tr.id {
		t.Error("the name still leads to the one that has ended")
	}
}

// TestEndsAbroad: what ends where it has gone is ended where it came from, and the other
// way round; its key gives the same sandbox in both.
func TestEndsAbroad(t *testing.T) {
	for through := range 2 {
		tr := travel(t, &siroccov1.CreateSandboxRequest{IdempotencyKey: fmt.Sprint("abroad-", through)})
		tr.move(t, tr.home, tr.id)
		c := tr.c[1-tr.home]
		if through == 1 {
			c = tr.c[tr.home]
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		sb, err := c.Sandbox(tr.id).Terminate(ctx, "abroad")
		cancel()
		if err != nil || sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_USER {
			t.Errorf("%v, %v", sb, err)
		}
		tr.seen(t, "end", func(sb *siroccov1.Sandbox) bool {
			return sb.GetState() == siroccov1.State_STATE_STOPPED && sb.GetEnd().GetMessage() == "abroad"
		})
	}
}

// TestMovesThatCannotBe are refused, with the reason, and the sandbox stays as it is.
func TestMovesThatCannotBe(t *testing.T) {
	tr := travel(t, &siroccov1.CreateSandboxRequest{Regions: []string{"eu"}})
	for i, c := range tr.c {
		for region, want := range map[string]sirocco.Code{"us": sirocco.FailedPrecondition, "atlantis": sirocco.InvalidArgument} {
			if _, err := c.Sandbox(tr.id).Migrate(t.Context(), region, ""); sirocco.CodeOf(err) != want {
				t.Errorf("to %s, asked in %s: %v, want %s", region, name(i), err, want)
			}
		}
	}
	if _, err := tr.c[us].Sandbox(tr.id).Migrate(t.Context(), "eu", ""); err != nil {
		t.Errorf("to where it is: %v", err)
	}
	free := travel(t, &siroccov1.CreateSandboxRequest{})
	if _, err := free.c[free.home].Sandbox(free.id).Migrate(t.Context(), name(1-free.home), "node-of-nobody"); sirocco.CodeOf(err) != sirocco.NoCapacity {
		t.Errorf("to a node that is not there: %v", err)
	}
	for _, one := range []*traveller{tr, free} {
		one.seen(t, "peace", func(sb *siroccov1.Sandbox) bool {
			return sb.GetState() == siroccov1.State_STATE_RUNNING && sb.GetPlacement().GetEpoch() == 1 && sb.GetMove() == nil
		})
	}
}

func nodesOf(t *testing.T, c *sirocco.Client) []string {
	t.Helper()
	resp, err := c.Nodes().List(t.Context(), connect.NewRequest(&siroccov1.ListNodesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range resp.Msg.GetNodes() {
		names = append(names, n.GetName())
	}
	return names
}
