package e2e

import (
	"testing"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/types/known/durationpb"
)

// A node that is drained without moves tells its sandboxes first and then ends them; new
// ones go to the other node. It needs a platform of its own.
func TestDrainEvicts(t *testing.T) {
	t.Parallel()
	two, err := platform.StartUp("drain", "--nodes", "2", "--set", "node-agent.eviction-notice=2s", "--set", "scheduler.patience=1s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := two.Stop(); err != nil {
			t.Error(err)
		}
	})
	c, err := two.Client("")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	here, there := map[string]*sirocco.Sandbox{}, map[string]*sirocco.Sandbox{}
	for len(here) < 2 || len(there) < 1 {
		s, err := c.Create(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if s.Record.GetPlacement().GetNode() == two.Node {
			here[s.ID] = s
		} else {
			there[s.ID] = s
		}
		if len(here)+len(there) > 20 {
			t.Fatalf("%d sandboxes on one node, %d on the other", len(here), len(there))
		}
	}
	node, err := c.Nodes().Drain(t.Context(), connect.NewRequest(&siroccov1.DrainNodeRequest{Name: two.Node, EvictAfter: durationpb.New(0)}))
	if err != nil || !node.Msg.GetCordoned() {
		t.Fatalf("%v, %v", node, err)
	}
	noticed := map[string]bool{}
	platform.Eventually(t, 20*time.Second, func() string {
		for id := range here {
			sb, err := c.Get(t.Context(), id)
			if err != nil {
				return err.Error()
			}
			if sb.GetEnd() == nil {
				if at := sb.GetDesired().GetEvictAt(); at != nil {
					noticed[id] = true
				}
				return id + " lives on"
			}
			if end := sb.GetEnd(); end.GetCause() != siroccov1.Cause_CAUSE_EVICTED || end.GetAt().AsTime().Before(sb.GetDesired().GetEvictAt().AsTime()) {
				t.Errorf("%s ended by %v, its notice was for %v", id, end, sb.GetDesired().GetEvictAt().AsTime())
			}
		}
		return ""
	})
	if len(noticed) == 0 {
		t.Error("nobody saw a notice before the end")
	}
	for id := range there {
		if sb, err := c.Get(t.Context(), id); err != nil || sb.GetEnd() != nil {
			t.Errorf("on the other node: %v, %v", sb.GetEnd(), err)
		}
	}
	s, err := c.Create(t.Context(), nil)
	if err != nil || s.Record.GetPlacement().GetNode() == two.Node || s.Record.GetState() != siroccov1.State_STATE_RUNNING {
		t.Errorf("a new one: %v, %v", s.Record.GetPlacement(), err)
	}
	// The last node is cordoned too: a create says why it fails.
	for _, n := range nodes(t, c) {
		if _, err := c.Nodes().Cordon(t.Context(), connect.NewRequest(&siroccov1.CordonNodeRequest{Name: n})); err != nil {
			t.Fatal(err)
		}
	}
	s, err = c.Create(t.Context(), &siroccov1.CreateSandboxRequest{Wait: siroccov1.Wait_WAIT_ACCEPTED})
	if err != nil {
		t.Fatal(err)
	}
	platform.Eventually(t, 15*time.Second, func() string {
		sb, err := c.Get(t.Context(), s.ID)
		if err != nil || sb.GetEnd() == nil {
			return "it waits"
		}
		if end := sb.GetEnd(); end.GetCause() != siroccov1.Cause_CAUSE_NO_CAPACITY || end.GetMessage() == "" {
			t.Errorf("got %v", end)
		}
		return ""
	})
}

func nodes(t *testing.T, c *sirocco.Client) []string {
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
