package abroad_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/abroad"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const wait = 20 * time.Second

// bus is that of another region, which can be killed and brought back.
type bus struct {
	t    testing.TB
	dir  string
	port int
	srv  *server.Server
	js   jetstream.JetStream
	// store writes records as the services there do.
	store *record.Store
}

func startBus(t testing.TB) *bus {
	t.Helper()
	b := &bus{t: t, dir: t.TempDir(), port: server.RANDOM_PORT}
	b.up()
	b.port = b.srv.Addr().(*net.TCPAddr).Port
	return b
}

// up starts it, with what it had.
func (b *bus) up() {
	b.t.Helper()
	b.srv = bustest.Server(b.t, func(o *server.Options) { o.Port, o.StoreDir = b.port, b.dir })
	_, b.js = bustest.Connect(b.t, b.srv)
	ctx, cancel := context.WithTimeout(b.t.Context(), wait)
	defer cancel()
	if err := topology.Ensure(ctx, b.js, topology.Options{}); err != nil {
		b.t.Fatal(err)
	}
	var err error
	if b.store, err = record.Open(ctx, b.js); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bus) down() {
	b.srv.Shutdown()
	b.srv.WaitForShutdown()
}

func (b *bus) create(tenant string, spec *siroccov1.CreateSandboxRequest) *siroccov1.Sandbox {
	b.t.Helper()
	sb := lifecycle.Accept(sandboxid.New(), tenant, "key", spec, time.Now())
	sb.Desired = &siroccov1.Desired{Deadline: timestamppb.New(time.Now().Add(time.Hour))}
	sb, err := b.store.Create(b.t.Context(), sb)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.update(sb, lifecycle.Place{Region: "us", Node: "n1"}, lifecycle.Run{Observed: &siroccov1.Observed{Epoch: 1}})
}

func (b *bus) update(sb *siroccov1.Sandbox, steps ...lifecycle.Step) *siroccov1.Sandbox {
	b.t.Helper()
	for _, step := range steps {
		var err error
		if sb, err = b.store.Update(b.t.Context(), sb.GetTenant(), sb.GetId(), sb, step); err != nil {
			b.t.Fatal(err)
		}
	}
	return sb
}

// remember follows the region us from another one.
func remember(t testing.TB, b *bus) *abroad.Regions {
	t.Helper()
	url := fmt.Sprintf("nats://127.0.0.1:%d", b.port)
	peers := peer.NewSet("eu", map[string]string{"eu": "nats://127.0.0.1:1", "us": url}, func(url string) (*nats.Conn, error) {
		return nats.Connect(url, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	})
	t.Cleanup(peers.Close)
	r, err := abroad.New(peers, 100*time.Millisecond, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	eventually(t, "it knows the region", func() bool { return r.Known("us") && r.Lost("us") == nil })
	return r
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(wait); !is(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", wait, what)
		}
	}
}

// What was known when the region went away stays, says so, and is put right when it is
// back.
func TestRemember(t *testing.T) {
	b := startBus(t)
	one := b.create("acme", &siroccov1.CreateSandboxRequest{Name: "one"})
	two := b.create("acme", &siroccov1.CreateSandboxRequest{})
	b.create("other", &siroccov1.CreateSandboxRequest{Name: "one"})
	gone := b.create("acme", &siroccov1.CreateSandboxRequest{Name: "gone"})
	b.update(gone, lifecycle.Migrate{Move: &siroccov1.Move{Key: "m", Region: "ap", Node: "n9", Epoch: 2}}, lifecycle.Depart{Epoch: 2})
	r := remember(t, b)

	names := func() map[string]bool {
		found := map[string]bool{}
		r.Each("acme", "us", func(sb *siroccov1.Sandbox) { found[sb.GetId()] = true })
		return found
	}
	if got := names(); len(got) != 2 || !got[one.GetId()] || !got[two.GetId()] {
		t.Errorf("acme has %v there; want %s and %s", got, one.GetId(), two.GetId())
	}
	for _, asked := range []string{one.GetId(), "one"} {
		if sb, region := r.Find("acme", asked); sb.GetId() != one.GetId() || region != "us" || sb.GetRevision() != one.GetRevision() {
			t.Errorf("%s is %v in %q; want %v", asked, sb, region, one)
		}
	}
	for what, id := range map[string]string{"one of another tenant": two.GetId(), "one that has moved on": gone.GetId(), "a name of one that has moved on": "gone", "nobody's": "none", "no name": ""} {
		tenant := "acme"
		if id == two.GetId() {
			tenant = "other"
		}
		if sb, region := r.Find(tenant, id); sb != nil || region != "" {
			t.Errorf("%s is found: %v in %q", what, sb, region)
		}
	}
	b.update(two, lifecycle.Finish{Epoch: 1, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_EXITED}})
	eventually(t, "it hears of an end", func() bool {
		sb, _ := r.Find("acme", two.GetId())
		return sb.GetState() == siroccov1.State_STATE_STOPPED
	})
	if l := r.Silent("us"); l != nil {
		t.Errorf("a region that answers is silent: %v", l)
	}

	before := time.Now()
	b.down()
	eventually(t, "the region is silent", func() bool { return r.Silent("us") != nil && r.Lost("us") != nil })
	if l := r.Lost("us"); l.GetRegion() != "us" || l.GetSince().AsTime().After(time.Now()) || l.GetSince().AsTime().Before(before.Add(-3*time.Second)) {
		t.Errorf("it was lost at %v: %v", before, l)
	}
	eventually(t, "it is dead", func() bool { return r.Silent("us").GetDead() })
	if sb, _ := r.Find("acme", "one"); sb.GetState() != siroccov1.State_STATE_RUNNING || sb.GetLost() != nil {
		t.Errorf("what is remembered has become %v", sb)
	}

	b.up()
	b.update(one, lifecycle.Finish{Epoch: 1, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_NODE_LOST}})
	if err := b.store.Delete(t.Context(), "acme", two.GetId()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the region is back", func() bool { return r.Silent("us") == nil && r.Lost("us") == nil })
	eventually(t, "what has changed is known", func() bool {
		sb, _ := r.Find("acme", one.GetId())
		deleted, _ := r.Find("acme", two.GetId())
		return sb.GetEnd().GetCause() == siroccov1.Cause_CAUSE_NODE_LOST && deleted == nil
	})
	if sb, _ := r.Find("acme", "one"); sb != nil {
		t.Errorf("the name of one that has ended leads to %v", sb)
	}
}

func TestAbout(t *testing.T) {
	now := time.Date(2026, 1, 2, 12, 4, 0, 0, time.UTC)
	l := &siroccov1.RegionLoss{Region: "us", Since: timestamppb.New(now.Add(-time.Minute)), Dead: true}
	running := &siroccov1.Sandbox{State: siroccov1.State_STATE_RUNNING, Desired: &siroccov1.Desired{Deadline: timestamppb.New(now.Add(time.Second))}}
	over := &siroccov1.Sandbox{State: siroccov1.State_STATE_RUNNING, Desired: &siroccov1.Desired{Deadline: timestamppb.New(now)}}
	ended := &siroccov1.Sandbox{State: siroccov1.State_STATE_STOPPED, Desired: &siroccov1.Desired{Deadline: timestamppb.New(now)}}
	for want, sb := range map[string]*siroccov1.Sandbox{"may go on there": running, "its deadline, 12:04:00Z, has passed": over, "it had ended before": ended} {
		got := abroad.About(l, sb, now)
		if !strings.Contains(got.GetNote(), want) || !strings.Contains(got.GetNote(), "us has been silent since 12:03:00Z") || !got.GetDead() || got.GetRegion() != "us" {
			t.Errorf("%v; want %q", got, want)
		}
	}
}

// A region of full size, 30,000 records, fits: they take no more room than on the bus, with a
// little for finding them.
func TestMemory(t *testing.T) {
	b := startBus(t)
	const records = 10000
	spec := &siroccov1.CreateSandboxRequest{Image: "base", Command: []string{"sh", "-c", "sleep 600"}, Env: map[string]string{"KIND": "worker"}, Tags: map[string]string{"job": "1234"}}
	size := 0
	template := b.create("acme", spec)
	for range records - 1 {
		sb := lifecycle.Accept(sandboxid.New(), "acme", "key", spec, time.Now())
		sb.Placement, sb.Observed, sb.History = template.GetPlacement(), template.GetObserved(), template.GetHistory()
		size += put(t, b, sb)
	}
	select {
	case <-b.js.PublishAsyncComplete():
	case <-time.After(wait):
		t.Fatal("the records are not written")
	}
	used := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := used()
	began := time.Now()
	r := remember(t, b)
	took := time.Since(began)
	if n := r.Len(); n != records {
		t.Fatalf("%d are remembered; want %d", n, records)
	}
	each := (int(used()) - int(before)) / records
	t.Logf("%d records of %d bytes, seen in %v, take %d bytes each", records, size/records, took, each)
	if each > size/records+600 {
		t.Errorf("a record of %d bytes takes %d", size/records, each)
	}
	runtime.KeepAlive(r)
}

// put writes a record without waiting, and returns its size.
func put(t testing.TB, b *bus, sb *siroccov1.Sandbox) int {
	t.Helper()
	value, err := proto.Marshal(sb)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.js.PublishAsync("$KV."+subject.BucketSandboxes+"."+subject.RecordKey(sb.GetTenant(), sb.GetId()), value, jetstream.WithStallWait(wait)); err != nil {
		t.Fatal(err)
	}
	return len(value)
}
