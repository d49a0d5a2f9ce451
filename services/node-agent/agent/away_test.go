package agent

import (
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

func placedAt(epoch, revision uint64, state siroccov1.State) *siroccov1.Sandbox {
	return &siroccov1.Sandbox{
		Id: "sb-x", Tenant: "acme", State: state, Revision: revision,
		Placement: &siroccov1.Placement{Node: "n", Epoch: epoch},
	}
}

// What a server says that has not caught up ends nothing; a newer placement and
// the end of the record do.
func TestAnOldAnswerEndsNothing(t *testing.T) {
	const running = siroccov1.State_STATE_RUNNING
	a := &Agent{name: "n", log: slog.New(slog.DiscardHandler)}
	for _, c := range []struct {
		name string
		read *siroccov1.Sandbox
		stop bool
	}{
		{"as it is", placedAt(2, 20, running), false},
		{"before it was placed", &siroccov1.Sandbox{State: siroccov1.State_STATE_ACCEPTED, Revision: 3}, false},
		{"its placement before", placedAt(1, 9, siroccov1.State_STATE_PLACED), false},
		{"an older revision", placedAt(2, 15, siroccov1.State_STATE_STARTING), false},
		{"placed anew", placedAt(3, 30, siroccov1.State_STATE_PLACED), true},
		{"ended", placedAt(2, 30, siroccov1.State_STATE_STOPPED), true},
	} {
		m := newMachine(a, placedAt(2, 20, running), &entry{}, 2)
		if end, stop := m.judge(c.read); stop != c.stop || end != nil {
			t.Errorf("%s: %v, %v", c.name, end, stop)
		}
		if got := m.current(); got.GetRevision() < 20 {
			t.Errorf("%s: revision %d was taken over", c.name, got.GetRevision())
		}
	}
}

// A bus that hangs holds up no deadline: the record is not waited for longer.
func TestADeadlineDoesNotWaitForTheBus(t *testing.T) {
	server := bustest.Server(t, nil)
	_, js := bustest.Connect(t, server)
	if err := topology.Ensure(t.Context(), js, topology.Options{}); err != nil {
		t.Fatal(err)
	}
	way := newWay(t, server.Addr().String())
	nc, err := nats.Connect("nats://"+way.address, nats.PingInterval(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err = jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	store, err := record.Open(t.Context(), js)
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{name: "n", log: slog.New(slog.DiscardHandler), env: program.Env{NC: nc}, store: store}
	m := newMachine(a, placedAt(2, 20, siroccov1.State_STATE_RUNNING), &entry{}, 2)
	way.hang.Lock()
	began := time.Now()
	end, stop := m.reread(t.Context(), began.Add(200*time.Millisecond))
	took := time.Since(began)
	way.hang.Unlock()
	if stop || took > readLimit/2 {
		t.Errorf("%v, %v after %v", end, stop, took)
	}
}

// way is a way to the bus on which bytes stay while hang is held.
type way struct {
	address string
	hang    sync.RWMutex
}

func newWay(t *testing.T, to string) *way {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &way{address: l.Addr().String()}
	var all sync.WaitGroup
	t.Cleanup(all.Wait)
	t.Cleanup(func() { _ = l.Close() })
	all.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			all.Go(func() { w.carry(near, far) })
			all.Go(func() { w.carry(far, near) })
		}
	})
	return w
}

func (w *way) carry(from, to net.Conn) {
	defer func() { _, _ = from.Close(), to.Close() }()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		w.hang.RLock()
		_, werr := to.Write(buf[:n])
		w.hang.RUnlock()
		if err != nil || werr != nil {
			return
		}
	}
}
