package reaper

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Shadows follow whatever happens where their sandboxes went: also one that is known
// already when another comes.
func TestShadowsFollow(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stores, urls := map[string]*record.Store{}, map[string]string{}
	env := program.Env{Region: "eu", Instance: "r", Log: slog.New(slog.DiscardHandler), Meter: metricnoop.NewMeterProvider()}
	for _, name := range []string{"eu", "us"} {
		server := bustest.Server(t, nil)
		nc, js := bustest.Connect(t, server)
		if err := topology.Ensure(ctx, js, topology.Options{}); err != nil {
			t.Fatal(err)
		}
		var err error
		if stores[name], err = record.Open(ctx, js); err != nil {
			t.Fatal(err)
		}
		if urls[name] = server.ClientURL(); name == "eu" {
			env.NC, env.JS = nc, js
		}
	}
	env.Peers = peer.NewSet("eu", urls, func(url string) (*nats.Conn, error) {
		return nats.Connect(url, nats.CustomInboxPrefix(bus.ServiceInbox))
	})
	t.Cleanup(env.Peers.Close)
	r, err := New(env, Config{})
	if err != nil {
		t.Fatal(err)
	}
	r.store, r.view = stores["eu"], record.NewView(stores["eu"], record.ViewOptions{KeepEnded: true})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.view.Run(ctx)
	}()
	defer func() { cancel(); <-done }()
	// leave makes a sandbox that has left eu and arrived in us, and returns its record.
	leave := func(key string) *siroccov1.Sandbox {
		t.Helper()
		id := sandboxid.New()
		sb, err := stores["eu"].Create(ctx, lifecycle.Accept(id, "acme", key, &siroccov1.CreateSandboxRequest{}, time.Now()))
		for _, step := range []lifecycle.Step{
			lifecycle.Place{Region: "eu", Node: "n", Address: "a:1"}, lifecycle.Run{Observed: &siroccov1.Observed{Epoch: 1}},
			lifecycle.Migrate{Move: &siroccov1.Move{Key: "m", Region: "us", Node: "m", NodeAddress: "b:1", Epoch: 2, Deadline: timestamppb.New(time.Now().Add(time.Minute))}},
			lifecycle.Depart{Epoch: 2},
		} {
			if err == nil {
				sb, err = stores["eu"].Update(ctx, "acme", id, nil, step)
			}
		}
		if err == nil {
			_, err = stores["us"].Land(ctx, sb, "us", lifecycle.Arrive{Observed: &siroccov1.Observed{Epoch: 2}})
		}
		if err != nil {
			t.Fatal(err)
		}
		return sb
	}
	until := func(sb *siroccov1.Sandbox, state siroccov1.State) {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for r.view.Lookup(sb.GetId()).GetState() != state {
			r.followShadows(ctx)
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("%s is %v in eu, want %v", sb.GetId(), r.view.Lookup(sb.GetId()).GetState(), state)
			}
		}
	}
	first := leave("first")
	until(first, siroccov1.State_STATE_RUNNING)
	second := leave("second")
	if _, err := stores["us"].Update(ctx, "acme", first.GetId(), nil, lifecycle.Finish{Epoch: 2, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_USER}}); err != nil {
		t.Fatal(err)
	}
	until(first, siroccov1.State_STATE_STOPPED)
	until(second, siroccov1.State_STATE_RUNNING)
	r.followShadows(ctx) // which forgets what has ended
	if len(r.shadows.seen) != 1 {
		t.Errorf("%d shadows are remembered, want the one that lives", len(r.shadows.seen))
	}
}
