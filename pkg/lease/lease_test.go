package lease_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/lease"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
)

// ttl is short, so that tests are.
const ttl = time.Second

// region starts a bus whose leases are short.
func region(t *testing.T, ttl time.Duration) *server.Server {
	t.Helper()
	s := bustest.Server(t, nil)
	_, js := bustest.Connect(t, s)
	if err := topology.Ensure(t.Context(), js, topology.Options{}); err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), subject.BucketLeases)
	if err != nil {
		t.Fatal(err)
	}
	status, err := kv.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cfg := status.Config()
	cfg.TTL = ttl
	if _, err := js.UpdateKeyValue(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	return s
}

// party is one that wants the lease.
type party struct {
	name string
	nc   *nats.Conn
	stop context.CancelFunc
	done chan struct{}
	got  chan time.Time
}

// join lets one more party want the lease; work runs while it has it.
func join(t *testing.T, s *server.Server, name string, work func(ctx context.Context)) *party {
	t.Helper()
	nc, js := bustest.Connect(t, s)
	ctx, stop := context.WithCancel(t.Context())
	p := &party{name: name, nc: nc, stop: stop, done: make(chan struct{}), got: make(chan time.Time, 16)}
	go func() {
		defer close(p.done)
		err := lease.New(js, "test", name, slog.New(slog.DiscardHandler)).Run(ctx, func(ctx context.Context) {
			p.got <- time.Now()
			work(ctx)
		})
		if err != nil && ctx.Err() == nil {
			t.Errorf("%s: %v", name, err)
		}
	}()
	t.Cleanup(func() { stop(); <-p.done })
	return p
}

func within(t *testing.T, what string, c <-chan time.Time) time.Time {
	t.Helper()
	select {
	case at := <-c:
		return at
	case <-time.After(20 * time.Second):
		t.Fatalf("waited in vain for %s", what)
	}
	return time.Time{}
}

// TestOneAtATime: however many want it and come and go, one has it, and somebody
// always gets it.
func TestOneAtATime(t *testing.T) {
	s := region(t, ttl)
	var inside, most atomic.Int32
	var mu sync.Mutex
	taken := make(chan *party, 64)
	parties := map[string]*party{}
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		mu.Lock()
		parties[name] = join(t, s, name, func(ctx context.Context) {
			if n := inside.Add(1); n > most.Load() {
				most.Store(n)
			}
			mu.Lock()
			p := parties[name]
			mu.Unlock()
			taken <- p
			<-ctx.Done()
			inside.Add(-1)
		})
		mu.Unlock()
	}
	seen := map[string]bool{}
	for len(seen) < 5 {
		select {
		case p := <-taken:
			seen[p.name] = true
			p.stop()
			<-p.done
		case <-time.After(20 * time.Second):
			t.Fatalf("nobody has it; had it: %v", seen)
		}
	}
	if n := most.Load(); n != 1 {
		t.Errorf("%d at a time", n)
	}
}

// TestGivenBack: who ends gives it back, which is sooner than it expires.
func TestGivenBack(t *testing.T) {
	// So long that a busy machine makes no difference.
	const ttl = 9 * time.Second
	s := region(t, ttl)
	wait := func(ctx context.Context) { <-ctx.Done() }
	a := join(t, s, "a", wait)
	within(t, "a", a.got)
	b := join(t, s, "b", wait)
	_, js := bustest.Connect(t, s)
	if holder, err := lease.Holder(t.Context(), js, "test"); holder != "a" || err != nil {
		t.Errorf("holder %q, %v", holder, err)
	}
	ended := time.Now()
	a.stop()
	if took := within(t, "b", b.got).Sub(ended); took >= ttl {
		t.Errorf("it took %v", took)
	}
}

// TestDead: who is cut off from the bus stops before another begins, and another
// begins.
func TestDead(t *testing.T) {
	s := region(t, ttl)
	stopped := make(chan time.Time, 1)
	a := join(t, s, "a", func(ctx context.Context) {
		<-ctx.Done()
		stopped <- time.Now()
	})
	within(t, "a", a.got)
	b := join(t, s, "b", func(ctx context.Context) { <-ctx.Done() })
	cut := time.Now()
	a.nc.Close()
	ended, begun := within(t, "the end of a", stopped), within(t, "b", b.got)
	if begun.Before(ended) {
		t.Errorf("b began %v before a ended", ended.Sub(begun))
	}
	if took := begun.Sub(cut); took > 5*ttl {
		t.Errorf("it took %v", took)
	}
}

// TestTaken: who finds the lease in other hands stops at once, not only when its
// own would have expired.
func TestTaken(t *testing.T) {
	const ttl = 9 * time.Second
	s := region(t, ttl)
	stopped := make(chan time.Time, 16)
	a := join(t, s, "a", func(ctx context.Context) {
		<-ctx.Done()
		stopped <- time.Now()
	})
	within(t, "a", a.got)
	_, js := bustest.Connect(t, s)
	kv, err := js.KeyValue(t.Context(), subject.BucketLeases)
	if err != nil {
		t.Fatal(err)
	}
	taken := time.Now()
	if _, err := kv.Put(t.Context(), "test", []byte("somebody")); err != nil {
		t.Fatal(err)
	}
	if took := within(t, "the end of a", stopped).Sub(taken); took > ttl/2 {
		t.Errorf("it took %v", took)
	}
}

// TestBusAway: the holder stops while the bus is away, and gets the lease again
// when it is back.
func TestBusAway(t *testing.T) {
	s := region(t, ttl)
	stopped := make(chan time.Time, 16)
	a := join(t, s, "a", func(ctx context.Context) {
		<-ctx.Done()
		stopped <- time.Now()
	})
	within(t, "a", a.got)
	dir, port := s.StoreDir(), s.Addr().(*net.TCPAddr).Port
	s.Shutdown()
	s.WaitForShutdown()
	within(t, "the end of a", stopped)
	bustest.Server(t, func(o *server.Options) { o.StoreDir, o.Port = filepath.Dir(dir), port })
	within(t, "a again", a.got)
}
