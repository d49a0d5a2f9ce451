package reaper

import (
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/guard"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/reaper/sweep"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/protobuf/types/known/durationpb"
)

// A sandbox whose node knows nothing of it is node_lost only once no other region can
// bring it up; one that was brought up is followed.
func TestGuardedSandboxesAreSettled(t *testing.T) {
	ctx := t.Context()
	nc, js := bustest.Start(t)
	far := bustest.Server(t, nil)
	_, farJS := bustest.Connect(t, far)
	if err := topology.Ensure(ctx, farJS, topology.Options{}); err != nil {
		t.Fatal(err)
	}
	store, err := record.Open(ctx, js)
	if err != nil {
		t.Fatal(err)
	}
	there, err := record.Open(ctx, farJS)
	if err != nil {
		t.Fatal(err)
	}
	guards, err := guard.Open(ctx, farJS)
	if err != nil {
		t.Fatal(err)
	}
	peers := peer.NewSet("us", map[string]string{"eu": far.ClientURL()}, func(url string) (*nats.Conn, error) { return nats.Connect(url) })
	t.Cleanup(peers.Close)
	r, err := New(program.Env{Region: "us", NC: nc, JS: js, Peers: peers, Log: slog.New(slog.DiscardHandler), Meter: metricnoop.NewMeterProvider()}, Config{Rules: sweep.DefaultRules()})
	if err != nil {
		t.Fatal(err)
	}
	r.store = store
	place := func(id string) *siroccov1.Sandbox {
		t.Helper()
		spec := &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(time.Hour), OnRegionLoss: siroccov1.OnRegionLoss_ON_REGION_LOSS_RESTORE}
		sb := lifecycle.Accept(id, "acme", id, spec, time.Now())
		for _, step := range []lifecycle.Step{lifecycle.Place{Node: "n1", Region: "us"}, lifecycle.Start{Epoch: 1}, lifecycle.Run{Observed: &siroccov1.Observed{Epoch: 1}}} {
			if sb, err = lifecycle.Apply(sb, step, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		if sb, err = store.Create(ctx, sb); err != nil {
			t.Fatal(err)
		}
		if err := guards.Engage(ctx, "acme", id, "us", "n1", 1, "t"); err != nil {
			t.Fatal(err)
		}
		if err := guards.Keep(ctx, "acme", id, "t", "g1", "f1", time.Now()); err != nil {
			t.Fatal(err)
		}
		return sb
	}
	lose := func(sb *siroccov1.Sandbox) error {
		return r.do(ctx, sweep.Action{Kind: sweep.Finish, Sandbox: sb, Cause: siroccov1.Cause_CAUSE_NODE_LOST})
	}
	read := func(id string) *siroccov1.Sandbox {
		t.Helper()
		sb, err := store.Get(ctx, "acme", id)
		if err != nil {
			t.Fatal(err)
		}
		return sb
	}

	free, taken := place("free"), place("taken")
	if err := lose(free); err != nil || read("free").GetEnd().GetCause() != siroccov1.Cause_CAUSE_NODE_LOST {
		t.Errorf("one that nobody has taken over: %v, %v", read("free"), err)
	}
	if _, err := guards.Claim(ctx, "acme", "free", "g1", "f1", 2); err == nil {
		t.Error("one that has ended can still be taken over")
	}
	if _, err := guards.Claim(ctx, "acme", "taken", "g1", "f1", 2); err != nil {
		t.Fatal(err)
	}
	if err := lose(taken); err == nil || read("taken").GetEnd() != nil {
		t.Errorf("one that was taken over and has not landed: %v, %v", read("taken"), err)
	}
	landed := read("taken")
	landed.Placement = &siroccov1.Placement{Region: "eu", Node: "g1", Epoch: 2}
	landed.Revision = 0
	if _, err := there.Create(ctx, landed); err != nil {
		t.Fatal(err)
	}
	if err := lose(taken); err != nil || !lifecycle.Shadow(read("taken"), "us") {
		t.Errorf("one that was taken over: %v, %v", read("taken"), err)
	}
	cut := place("cut")
	far.Shutdown()
	if err := lose(cut); err == nil || read("cut").GetEnd() != nil {
		t.Errorf("one of which nobody can tell: %v, %v", read("cut"), err)
	}
}
