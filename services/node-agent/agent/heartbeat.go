package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// beatPause is how close two heartbeats may follow each other when something
// changes all the time.
const beatPause = time.Second

func (a *Agent) pokeHeartbeat() {
	select {
	case a.beat <- struct{}{}:
	default:
	}
}

// readyNow makes the node take sandboxes, and tells at once: schedulers wait for it.
func (a *Agent) readyNow() {
	a.ready.Store(true)
	select {
	case a.urgent <- struct{}{}:
	default:
	}
}

// heartbeats writes the node's entry until ctx ends, and then once more: not
// ready. An entry that is not renewed expires, and watchers are told.
func (a *Agent) heartbeats(ctx context.Context) error {
	kv, err := a.env.JS.KeyValue(ctx, subject.BucketNodes)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", subject.BucketNodes, err)
	}
	tick := time.NewTicker(topology.NodeBeat)
	defer tick.Stop()
	for {
		// One that was missed is of no use later: the next comes as soon as the bus
		// is back.
		if bus.Await(ctx, a.env.NC) == nil {
			a.putNode(ctx, kv)
		}
		select {
		case <-time.After(beatPause):
		case <-a.urgent:
			continue
		case <-ctx.Done():
		}
		select {
		case <-ctx.Done():
			a.ready.Store(false)
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			a.putNode(last, kv)
			return nil
		case <-tick.C:
		case <-a.beat:
		case <-a.urgent:
		}
	}
}

func (a *Agent) putNode(ctx context.Context, kv jetstream.KeyValue) {
	raw, err := proto.Marshal(a.node())
	if err != nil {
		a.log.Error("encode heartbeat", "err", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, topology.NodeBeat)
	defer cancel()
	if _, err := kv.Put(ctx, subject.NodeKey(a.env.Region, a.name), raw); err != nil && ctx.Err() == nil {
		a.log.Warn("heartbeat not written", "err", err)
	}
}

// node is what the node says of itself.
func (a *Agent) node() *siroccov1.Node {
	used, capacity := a.ledger.totals()
	a.mu.Lock()
	live, starts, failures := len(a.machines), a.starts, a.startFailures
	a.mu.Unlock()
	return &siroccov1.Node{
		Name: a.name, Region: a.env.Region, Address: *a.address.Load(), BootId: a.bootID, LinkSocket: a.linkSocket,
		Capacity: a.capacity(capacity, a.cfg.DiskBytes), Used: a.capacity(used, a.diskUsed()),
		Live: int32(live), Cordoned: a.cordoned.Load(), Draining: a.draining.Load(), //nolint:gosec // at most thousands
		Runtime: a.parts.runtime.Name(), RuntimeVersion: a.parts.runtime.Version(), Processor: a.processor,
		Warm: a.pools.counts(), SeenAt: timestamppb.Now(), Ready: a.ready.Load(),
		StartLatencyMicros: a.pools.buildTime().Microseconds(), Starts: starts, StartFailures: failures,
	}
}

func (a *Agent) capacity(x amount, disk int64) *siroccov1.NodeCapacity {
	return &siroccov1.NodeCapacity{
		CpuMillis: x.cpuMillis, MemoryBytes: x.memoryBytes, DiskBytes: disk, Sandboxes: int32(x.sandboxes), //nolint:gosec // at most thousands
	}
}

// followOrders does what operators want of the node, until ctx ends.
func (a *Agent) followOrders(ctx context.Context) error {
	return bus.Watch(ctx, a.env.JS, subject.BucketNodeOrders, subject.NodeKey(a.env.Region, a.name), func() {}, func(e jetstream.KeyValueEntry) {
		if e == nil {
			return
		}
		orders := &siroccov1.Node{}
		if e.Operation() == jetstream.KeyValuePut {
			if err := proto.Unmarshal(e.Value(), orders); err != nil {
				a.log.Error("orders that can't be read", "err", err)
				return
			}
		}
		a.obey(ctx, orders)
	})
}

// obey takes over orders. Draining gives each sandbox its eviction notice; lifting it
// takes back those that have not been carried out.
func (a *Agent) obey(ctx context.Context, orders *siroccov1.Node) {
	a.cordoned.Store(orders.GetCordoned())
	a.draining.Store(orders.GetDraining())
	a.pools.pause(orders.GetCordoned() || orders.GetDraining())
	a.pokeHeartbeat()
	var notice lifecycle.Notice
	if orders.GetDraining() {
		notice.EvictAt = time.Now().Add(a.cfg.EvictionNotice)
	}
	for _, m := range a.all() {
		// What the machine knows may be older than what the orders before these have written.
		from := m.current()
		if m.noticed.GetRevision() > from.GetRevision() {
			from = m.noticed
		}
		sb, err := m.update(ctx, from, notice)
		if err != nil {
			m.log.Warn("eviction notice not written", "err", err)
			continue
		}
		if sb != from {
			m.noticed = sb
			m.poke()
		}
	}
}
