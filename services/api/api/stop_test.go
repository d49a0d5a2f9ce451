package api_test

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/subject"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/api"
)

// Who waits for an end gets it from the node without a wish in the record; and a
// node that promises it and does nothing is told by the record all the same.
func TestTerminateAsksTheNodeFirst(t *testing.T) {
	r := start(t, api.Config{})
	tr := r.transports("acme", r.key("acme", apikey.RoleTenant))[0]
	for name, c := range map[string]struct {
		keeps bool
		want  []siroccov1.State
	}{
		"it does":     {true, []siroccov1.State{siroccov1.State_STATE_RUNNING, siroccov1.State_STATE_STOPPED}},
		"it does not": {false, []siroccov1.State{siroccov1.State_STATE_RUNNING, siroccov1.State_STATE_STOPPING, siroccov1.State_STATE_STOPPED}},
	} {
		sub, err := r.js.Conn().Subscribe(subject.Node("n1", subject.NodeStop), func(msg *nats.Msg) {
			ctx := context.Background()
			req := &nodev1.StopRequest{}
			if err := bus.Decode(msg.Header, msg.Data, req); err != nil {
				t.Error(err)
			}
			answer, err := bus.NewMsg(ctx, msg.Reply, &nodev1.StopResponse{Known: true})
			if err == nil {
				err = msg.RespondMsg(answer)
			}
			if err == nil && c.keeps {
				_, err = r.store.Update(ctx, req.GetTenant(), req.GetId(), nil, lifecycle.Finish{
					Epoch: req.GetEpoch(), End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_USER, Message: req.GetReason()},
				})
			}
			if err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		resp, sb := &siroccov1.CreateSandboxResponse{}, &siroccov1.Sandbox{}
		if err := tr.call(t.Context(), "SandboxService/Create", &siroccov1.CreateSandboxRequest{}, resp); err != nil {
			t.Fatal(err)
		}
		if err := tr.call(t.Context(), "SandboxService/Terminate", &siroccov1.TerminateSandboxRequest{Id: resp.GetSandbox().GetId(), Reason: "enough"}, sb); err != nil {
			t.Fatal(err)
		}
		if sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_USER {
			t.Errorf("%s: end %v", name, sb.GetEnd())
		}
		history := sb.GetHistory()
		if len(history) < len(c.want) {
			t.Fatalf("%s: history %v", name, history)
		}
		for i, h := range history[len(history)-len(c.want):] {
			if h.GetState() != c.want[i] {
				t.Errorf("%s: history %v", name, history)
			}
		}
		if err := sub.Unsubscribe(); err != nil {
			t.Fatal(err)
		}
	}
}
