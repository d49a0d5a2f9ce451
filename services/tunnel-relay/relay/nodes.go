package relay

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// followNodes tells the dialer which agents are on this machine, until ctx ends.
// What it has told stays when the bus is away.
func (r *Relay) followNodes(ctx context.Context) {
	machine, err := link.MachineID()
	if err != nil {
		r.log.Warn("nodes on this machine can't be told from others; all are reached by mutual TLS", "err", err)
		return
	}
	n := neighbours{machine: machine, tell: r.router.dialer.Local, known: map[string]string{}}
	_ = bus.Watch(ctx, r.env.JS, subject.BucketNodes, ">", func() {}, n.see) // it ends only with ctx
}

// neighbours are the agents on the relay's machine.
type neighbours struct {
	machine string
	tell    func(address, socket string)
	known   map[string]string // address by key
}

// see takes in what a node says of itself, or that it says nothing any more.
func (n *neighbours) see(e jetstream.KeyValueEntry) {
	if e == nil {
		return
	}
	node := &siroccov1.Node{}
	if e.Operation() == jetstream.KeyValuePut && proto.Unmarshal(e.Value(), node) != nil {
		return
	}
	before, now := n.known[e.Key()], ""
	if node.GetBootId() == n.machine && node.GetLinkSocket() != "" {
		now = node.GetAddress()
	}
	if before != "" && before != now {
		n.tell(before, "")
		delete(n.known, e.Key())
	}
	if now != "" {
		n.tell(now, node.GetLinkSocket())
		n.known[e.Key()] = now
	}
}
