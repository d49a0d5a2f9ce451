package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guard"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
)

// Sandboxes that are to be brought up elsewhere if this region is lost are guarded by a
// node of another one, and may run here only while this node's fence in that region
// holds (see package guard): fence.go says whether it does, guarded.go does what follows,
// for one sandbox. What a guard does for others is in keeper.go.

// fence is this node's fence in one other region.
type fence struct {
	agent *Agent
	peer  *peer.Peer

	// turn is held while it is renewed.
	turn sync.Mutex

	mu    sync.Mutex
	state guard.Fence
	store *guard.Store // nil until the region was reached once
	users int          // sandboxes that need it

	// listing guards the region's nodes as they were when listed.
	listing sync.Mutex
	listed  time.Time
	known   []*siroccov1.Node
}

// nodesAge is how old a list of another region's nodes may be: as old as what a node
// that has gone leaves behind there.
const nodesAge = topology.NodeTTL

// nodes returns the nodes of the other region. All sandboxes that are guarded there ask
// for them with each checkpoint.
func (f *fence) nodes(ctx context.Context) ([]*siroccov1.Node, error) {
	f.listing.Lock()
	defer f.listing.Unlock()
	if time.Since(f.listed) < nodesAge {
		return f.known, nil
	}
	kv, err := f.peer.JS.KeyValue(ctx, subject.BucketNodes)
	if err != nil {
		return nil, err
	}
	keys, err := kv.ListKeys(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = keys.Stop() }()
	var all []*siroccov1.Node
	for key := range keys.Keys() {
		entry, err := kv.Get(ctx, key)
		if err != nil {
			continue // it has gone silent meanwhile
		}
		node := &siroccov1.Node{}
		if err := proto.Unmarshal(entry.Value(), node); err != nil {
			continue // of another version
		}
		all = append(all, node)
	}
	if len(all) > 0 { // nodes that are just starting are not waited for
		f.listed, f.known = time.Now(), all
	}
	return all, nil
}

// openFences makes the fences in all other regions. They stand once somebody needs them.
func (a *Agent) openFences() error {
	a.fences = map[string]*fence{}
	for _, region := range a.env.Peers.Regions() {
		p, err := a.env.Peers.Get(region)
		if err != nil {
			return err
		}
		a.fences[region] = &fence{agent: a, peer: p}
	}
	return nil
}

// renewFences keeps the fences that are needed, until ctx ends.
func (a *Agent) renewFences(ctx context.Context) error {
	var group errgroup.Group
	for _, f := range a.fences {
		group.Go(func() error {
			tick := time.NewTicker(guard.RenewEvery)
			defer tick.Stop()
			for {
				f.mu.Lock()
				needed := f.users > 0
				f.mu.Unlock()
				if needed {
					if err := f.renew(ctx); err != nil && ctx.Err() == nil {
						a.log.Warn("the fence around guarded sandboxes is not renewed", "peer", f.peer.Region, "err", err)
					}
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
					return nil
				}
			}
		})
	}
	return group.Wait()
}

// use counts the sandboxes that need the fence.
func (f *fence) use(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users += n
}

// spell is the fence's spell now; 0 while it does not hold, or where there is no such
// region any more.
func (f *fence) spell() uint64 {
	if f == nil {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.Spell(time.Now())
}

// open returns what the region's bus holds of guards.
func (f *fence) open(ctx context.Context) (*guard.Store, error) {
	if f == nil {
		return nil, fault.New(fault.Unavailable, "the region is none of the peers")
	}
	f.mu.Lock()
	store := f.store
	f.mu.Unlock()
	if store != nil {
		return store, nil
	}
	if !f.peer.Alive() {
		return nil, fault.New(fault.Unavailable, "region %s can't be reached", f.peer.Region)
	}
	store, err := guard.Open(ctx, f.peer.JS)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.store = store
	return store, nil
}

// renew renews the fence. It returns nil only if it holds afterwards.
func (f *fence) renew(ctx context.Context) error {
	f.turn.Lock()
	defer f.turn.Unlock()
	ctx, cancel := context.WithTimeout(ctx, guard.RenewEvery)
	defer cancel()
	store, err := f.open(ctx)
	if err != nil {
		return err
	}
	sent := time.Now()
	if err := store.Renew(ctx, f.agent.env.Region, f.agent.name); err != nil {
		return err
	}
	f.mu.Lock()
	f.state.Renewed(sent, time.Now())
	f.mu.Unlock()
	if f.spell() == 0 {
		return fmt.Errorf("the fence in region %s was renewed too late", f.peer.Region)
	}
	return nil
}

// watched is a sandbox's bond to a fence.
type watched struct {
	fence  *fence // nil if its region is none of the peers any more
	region string
	term   string
	// spell of the fence in which the guard's entry was written by this node: while
	// it is the same, nobody can have taken the sandbox over.
	spell uint64
}

// fenced says whether the sandbox may not run here now, since it may run elsewhere: it
// must not serve then, whether or not it is paused already.
func (m *machine) fenced() bool {
	w := m.watched.Load()
	return w != nil && (w.spell == 0 || w.fence.spell() != w.spell)
}

// errFenced answers who wants something of a sandbox that is fenced.
func (m *machine) errFenced() error {
	region := ""
	if w := m.watched.Load(); w != nil {
		region = w.region
	}
	return &fault.Fault{
		Code: fault.Unavailable, RetryAfter: time.Second,
		Message: "the sandbox stands still: its node can't make sure that region " + region + ", which keeps its checkpoints, has not taken it over",
	}
}
