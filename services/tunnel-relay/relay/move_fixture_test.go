package relay

import (
	"errors"
	"net"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/link"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// flow is a stream to a port, as an agent sees it: waiting from the first byte of a
// request to the first of its answer.
type flow struct {
	net.Conn
	agent   *agent
	header  link.Header
	waiting bool
}

func (a *agent) flow(h link.Header, c net.Conn) *flow {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := &flow{Conn: c, agent: a, header: h}
	a.flows[f] = struct{}{}
	return f
}

func (a *agent) over(f *flow) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.flows, f)
}

var errShut = errors.New("shut")

type inwards struct{ *flow }

func (f inwards) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	a := f.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	if n > 0 && f.header.Requests && !f.waiting {
		if f.header.Epoch <= a.shut[f.header.Sandbox] {
			_ = f.Conn.(*link.Conn).Break(link.BrokeUnheard)
			return 0, errShut
		}
		f.waiting = true
	}
	return n, err
}

type outwards struct{ *flow }

func (f outwards) Write(b []byte) (int, error) {
	f.agent.mu.Lock()
	f.waiting = false
	f.agent.mu.Unlock()
	return f.Conn.Write(b)
}

// shutDoor lets no request to the sandbox in any more.
func (a *agent) shutDoor(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shut[id] = a.runs[id]
}

// quiet is shutDoor; it waits until no request is under way.
func (a *agent) quiet(id string) {
	a.t.Helper()
	a.shutDoor(id)
	eventually(a.t, "no request is under way", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		for f := range a.flows {
			if f.header.Sandbox == id && f.waiting {
				return false
			}
		}
		return true
	})
}

func (a *agent) open(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.shut, id)
}

// breakOff breaks off the streams to a sandbox on which an answer is waited for.
func (a *agent) breakOff(id string, why link.Break) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for f := range a.flows {
		if f.header.Sandbox == id && f.waiting {
			_ = f.Conn.(*link.Conn).Break(why)
		}
	}
}

// migrate begins a move.
func (g *rig) migrate(sb *siroccov1.Sandbox, region string, to *agent) *siroccov1.Sandbox {
	g.t.Helper()
	epoch := lifecycle.NextEpoch(sb)
	return g.step(sb, lifecycle.Migrate{Move: &siroccov1.Move{
		Key: "move-" + time.Now().String(), Region: region, Node: "m", NodeAddress: to.address, Epoch: epoch,
		Deadline: timestamppb.New(time.Now().Add(time.Minute)),
	}})
}

// depart makes it, arrive ends it.
func (g *rig) depart(sb *siroccov1.Sandbox) *siroccov1.Sandbox {
	return g.step(sb, lifecycle.Depart{Epoch: sb.GetMove().GetEpoch()})
}

func (g *rig) arrive(sb *siroccov1.Sandbox, to *agent) *siroccov1.Sandbox {
	epoch := sb.GetMove().GetEpoch()
	to.run(sb.GetId(), epoch)
	return g.step(sb, lifecycle.Arrive{Observed: &siroccov1.Observed{Epoch: epoch}})
}

func (g *rig) callOff(sb *siroccov1.Sandbox) *siroccov1.Sandbox {
	return g.step(sb, lifecycle.CallOff{Epoch: sb.GetMove().GetEpoch()})
}

// move takes a running sandbox from one agent to another, as agents do.
func (g *rig) move(sb *siroccov1.Sandbox, from, to *agent) *siroccov1.Sandbox {
	g.t.Helper()
	sb = g.migrate(sb, "test", to)
	from.quiet(sb.GetId())
	sb = g.depart(sb)
	from.breakOff(sb.GetId(), link.BrokeMoved)
	from.run(sb.GetId(), 0)
	return g.arrive(sb, to)
}
