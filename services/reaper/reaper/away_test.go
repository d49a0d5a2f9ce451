package reaper

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/reaper/sweep"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/protobuf/types/known/durationpb"
)

// The bus goes away for longer than a node may be silent, when a node has just
// lost it. Its sandboxes are no node_lost when the bus is back.
func TestNothingIsLostByTheBusBeingAway(t *testing.T) {
	const nodeLost = 3 * time.Second
	dir, port := t.TempDir(), server.RANDOM_PORT
	begin := func() *server.Server {
		return bustest.Server(t, func(o *server.Options) { o.StoreDir, o.Port = dir, port })
	}
	bus := begin()
	port = bus.Addr().(*net.TCPAddr).Port
	nc, js := bustest.Connect(t, bus)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := topology.Ensure(ctx, js, topology.Options{}); err != nil {
		t.Fatal(err)
	}
	store, err := record.Open(ctx, js)
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := js.KeyValue(ctx, subject.BucketNodes)
	if err != nil {
		t.Fatal(err)
	}
	// One on the node; and one that waits for a node until its time is over after
	// the bus is back, by which the sweeps that see it can be told.
	const silent = "n"
	began := time.Now()
	write := func(id string, life time.Duration, steps ...lifecycle.Step) {
		t.Helper()
		sb := lifecycle.Accept(id, "acme", id, &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(life)}, began)
		if _, err := store.Create(ctx, sb); err != nil {
			t.Fatal(err)
		}
		for _, step := range steps {
			if _, err := store.Update(ctx, "acme", id, nil, step); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("runs", time.Hour, lifecycle.Place{Node: silent, Region: "eu"}, lifecycle.Start{Epoch: 1}, lifecycle.Run{Observed: &siroccov1.Observed{Epoch: 1}})
	put := func() {
		t.Helper()
		if _, err := nodes.Put(ctx, subject.NodeKey("eu", silent), nil); err != nil {
			t.Fatal(err)
		}
	}
	put()

	rnc, rjs := bustest.Connect(t, bus)
	rules := sweep.DefaultRules()
	rules.NodeLost = nodeLost
	r, err := New(program.Env{Region: "eu", NC: rnc, JS: rjs, Log: slog.New(slog.DiscardHandler), Meter: metricnoop.NewMeterProvider()},
		Config{Rules: rules, SweepEvery: 20 * time.Millisecond, InventoryEvery: time.Hour, ClaimsEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	rctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(rctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	until := func(what string, done func() bool) {
		t.Helper()
		for !done() {
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
				t.Fatal("never: " + what)
			}
		}
	}
	until("the node is heard", func() bool { return len(r.ear.living()) == 1 })
	if err := nodes.Delete(ctx, subject.NodeKey("eu", silent)); err != nil {
		t.Fatal(err)
	}
	until("the node is silent", func() bool { return len(r.ear.living()) == 0 })
	gone := time.Now()
	bus.Shutdown()
	bus.WaitForShutdown()
	until("the silence is long", func() bool { return time.Since(gone) > nodeLost+time.Second })
	begin()
	until("the bus is back", nc.IsConnected)
	put()
	write("late", time.Millisecond)
	until("the records were looked through", func() bool {
		sb, err := store.Get(ctx, "acme", "late")
		return err == nil && lifecycle.Ended(sb.GetState())
	})
	if sb, err := store.Get(ctx, "acme", "runs"); err != nil || sb.GetState() != siroccov1.State_STATE_RUNNING {
		t.Errorf("%v: %v, %v", sb.GetState(), sb.GetEnd(), err)
	}
	// What stays silent while it is listened to is lost.
	if err := nodes.Delete(ctx, subject.NodeKey("eu", silent)); err != nil {
		t.Fatal(err)
	}
	until("the node is lost", func() bool {
		sb, err := store.Get(ctx, "acme", "runs")
		return err == nil && sb.GetEnd().GetCause() == siroccov1.Cause_CAUSE_NODE_LOST
	})
}
