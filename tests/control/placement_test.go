package control

import (
	"fmt"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/tests/harness"
	"google.golang.org/protobuf/proto"
)

// nodesReady waits until so many nodes say that they take sandboxes.
func nodesReady(t *testing.T, r *harness.Region, want int) {
	t.Helper()
	nodes, err := r.JS.KeyValue(t.Context(), subject.BucketNodes)
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 20*time.Second, func() string {
		list, err := nodes.ListKeys(t.Context())
		if err != nil {
			return err.Error()
		}
		ready := 0
		for key := range list.Keys() {
			n := &siroccov1.Node{}
			if e, err := nodes.Get(t.Context(), key); err == nil && proto.Unmarshal(e.Value(), n) == nil && n.GetReady() {
				ready++
			}
		}
		if ready < want {
			return fmt.Sprintf("%d of %d nodes are ready", ready, want)
		}
		return ""
	})
}

// TestBadNodesAreAvoided: one node starts sandboxes slowly, another fails them at
// once. Both stay the emptiest, which is what placement would choose; so only
// what the nodes report of their starts can keep sandboxes off them.
func TestBadNodesAreAvoided(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.Scheduler("s1")
	for name, change := range map[string]func(*agent.Config){
		"good-1": func(*agent.Config) {}, "good-2": func(*agent.Config) {}, "good-3": func(*agent.Config) {},
		"slow":    func(c *agent.Config) { c.SimStart = 300 * time.Millisecond },
		"failing": func(c *agent.Config) { c.SimFailures = 1 },
	} {
		r.SimNode(name, nil, change)
	}
	nodesReady(t, r, 5)
	const want = 20
	inARow := 0
	for i := 0; inARow < want; i++ {
		if i == 200 {
			t.Fatalf("of 200 sandboxes, never %d in a row went to good nodes", want)
		}
		key := fmt.Sprint("s", i)
		command(t, r, subject.VerbCreate, key, &siroccov1.CreateSandboxRequest{})
		sb := await(t, r, idOf(t, r, key), "running or ended", func(sb *siroccov1.Sandbox) bool { return running(sb) || ended(sb) })
		switch sb.GetPlacement().GetNode() {
		case "slow", "failing":
			inARow = 0
		default:
			inARow++
		}
	}
}
