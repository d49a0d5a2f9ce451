package bus_test

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/bustest"
)

// TestWatchLosesItsServer: a watch on a cluster goes on soon after the server that fed it
// is gone, though its connection, to another server, stays; with what comes next, and
// without showing again what it has shown.
func TestWatchLosesItsServer(t *testing.T) {
	servers := bustest.Cluster(t, 3)
	_, js := bustest.Connect(t, servers[0])
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	kv, err := js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b", Storage: jetstream.FileStorage, History: 10, Replicas: 3})
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"1", "2", "3"} {
		if _, err := kv.Put(ctx, "before", []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	allHave(ctx, t, js, "KV_b")
	w := watchFedBy(ctx, t, js, servers[1:])
	began := time.Now()
	w.fedBy.Shutdown()
	w.fedBy.WaitForShutdown()
	if _, err := kv.Put(ctx, "after", []byte("1")); err != nil {
		t.Fatalf("write with two servers of three: %v", err)
	}
	select {
	case got := <-w.changes:
		if got != "after=1" {
			t.Errorf("after the loss came %s", got)
		}
	case <-ctx.Done():
		t.Fatal("nothing came after the loss")
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the watch was deaf for %v", took)
	}
	if _, err := kv.Put(ctx, "after", []byte("2")); err != nil {
		t.Fatal(err)
	}
	if got := <-w.changes; got != "after=2" {
		t.Errorf("then came %s", got)
	}
	if n := w.begun.Load(); n != 1 {
		t.Errorf("the watch began %d times", n)
	}
}

// allHave waits until every server has what was written to a stream: one that lags would
// show it as a change.
func allHave(ctx context.Context, t *testing.T, js jetstream.JetStream, name string) {
	t.Helper()
	for ctx.Err() == nil {
		stream, err := js.Stream(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		replicas := stream.CachedInfo().Cluster.Replicas
		if !slices.ContainsFunc(replicas, func(p *jetstream.PeerInfo) bool { return !p.Current || p.Lag > 0 }) {
			return
		}
	}
	t.Fatalf("not all servers have %s", name)
}

// watched is a watch that has shown what was there.
type watched struct {
	// changes gets what it shows since, as key=value.
	changes chan string
	begun   atomic.Int32
	// fedBy is the server that the entries come from.
	fedBy *server.Server
}

// watchFedBy begins watches of the bucket b until one is fed by a server of those given,
// which the cluster chooses by lot.
func watchFedBy(ctx context.Context, t *testing.T, js jetstream.JetStream, servers []*server.Server) *watched {
	t.Helper()
	for ctx.Err() == nil {
		w := &watched{changes: make(chan string, 100)}
		known := feeds(ctx, t, js)
		wctx, stop := context.WithCancel(ctx)
		shown := make(chan struct{})
		var running sync.WaitGroup
		running.Go(func() {
			caughtUp := false
			_ = bus.Watch(wctx, js, "b", ">", func() { w.begun.Add(1) }, func(e jetstream.KeyValueEntry) {
				switch {
				case e == nil && !caughtUp:
					caughtUp = true
					close(shown)
				case e != nil && caughtUp:
					w.changes <- e.Key() + "=" + string(e.Value())
				}
			})
		})
		t.Cleanup(func() { stop(); running.Wait() })
		select {
		case <-shown:
		case <-ctx.Done():
			t.Fatal("the watch did not begin")
		}
		name := ""
		for name == "" && ctx.Err() == nil {
			for feed, by := range feeds(ctx, t, js) {
				if _, old := known[feed]; !old {
					name = by
				}
			}
		}
		i := slices.IndexFunc(servers, func(s *server.Server) bool { return s.Name() == name })
		if i >= 0 {
			w.fedBy = servers[i]
			return w
		}
		stop()
		running.Wait()
	}
	t.Fatal("no watch was fed by one of the servers")
	return nil
}

// feeds returns the feeds of changes of the bucket b, and the server that each comes from.
func feeds(ctx context.Context, t *testing.T, js jetstream.JetStream) map[string]string {
	t.Helper()
	stream, err := js.Stream(ctx, "KV_b")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	list := stream.ListConsumers(ctx)
	for info := range list.Info() {
		if info.Config.DeliverPolicy == jetstream.DeliverByStartSequencePolicy && info.Cluster != nil {
			all[info.Name] = info.Cluster.Leader
		}
	}
	if err := list.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}
