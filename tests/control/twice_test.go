package control

import (
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/tests/harness"
)

// A node that is asked for one sandbox many times at once runs it once: a second
// execution would take the network and the folder of the first.
func TestANodeIsAskedManyTimesAtOnce(t *testing.T) {
	t.Parallel()
	r := harness.Start(t)
	r.SimNode("n1", nil, func(c *agent.Config) { c.SimStart = 20 * time.Millisecond })
	nodesReady(t, r, 1)
	for round := range 20 {
		spec, err := admission.Normalize(&siroccov1.CreateSandboxRequest{}, admission.DefaultLimits())
		if err != nil {
			t.Fatal(err)
		}
		sb, _, err := r.Store.Accept(t.Context(), record.Acceptance{Tenant: "acme", Key: "k" + string(rune('a'+round)), Spec: spec, Region: "eu", Front: r.Front})
		if err != nil {
			t.Fatal(err)
		}
		if sb, err = r.Store.Update(t.Context(), "acme", sb.GetId(), sb, lifecycle.Place{Region: "eu", Node: "n1", Address: "x:1", Epoch: 1}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				resp := &nodev1.PlaceResponse{}
				if err := bus.Ask(t.Context(), r.NC, subject.Node("n1", subject.NodePlace), &nodev1.PlaceRequest{Sandbox: sb, Revision: sb.GetRevision()}, resp); err != nil || resp.GetRefusal() != nil {
					t.Errorf("%v, %v", resp, err)
				}
			})
		}
		wg.Wait()
		sb = await(t, r, sb.GetId(), "running", func(sb *siroccov1.Sandbox) bool { return sb.GetState() >= siroccov1.State_STATE_RUNNING })
		if !running(sb) {
			t.Errorf("round %d: %v %v", round, sb.GetState(), sb.GetEnd())
		}
	}
}
