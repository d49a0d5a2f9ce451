package scheduler

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/scheduler/placement"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
)

// fleet is what this scheduler knows of the nodes: what they say of themselves,
// what operators want of them, and what it has just put on them and they have
// not reported yet.
type fleet struct {
	log   *slog.Logger
	ready chan struct{}

	mu    sync.RWMutex
	nodes map[string]*member
	// seen is where rank lays the nodes out; kept, so that a plan allocates nothing
	// for each node.
	seen []placement.Node
}

type member struct {
	node    *siroccov1.Node // nil while only orders are known
	orders  *siroccov1.Node
	assumed map[string]assumption // by sandbox id
	// used is what the node reported and what is assumed, together.
	used placement.Amount
	// track is how its starts went; starts and failures are its counts of them.
	track            placement.Track
	starts, failures int64
	// suspectUntil: it did not answer; others are asked first.
	suspectUntil time.Time
}

type assumption struct {
	template string
	need     placement.Amount
	at       time.Time
}

func newFleet(log *slog.Logger) *fleet {
	return &fleet{log: log, ready: make(chan struct{}), nodes: map[string]*member{}}
}

// run follows both buckets until ctx ends.
func (f *fleet) run(ctx context.Context, js jetstream.JetStream) error {
	var both sync.WaitGroup
	both.Add(2)
	group, ctx := errgroup.WithContext(ctx)
	for bucket, set := range map[string]func(string, *siroccov1.Node){
		subject.BucketNodes: f.setNode, subject.BucketNodeOrders: f.setOrders,
	} {
		group.Go(func() error {
			caughtUp := sync.OnceFunc(both.Done)
			defer caughtUp()         // else an end before that would be waited for
			var seen map[string]bool // nil once it has caught up
			return bus.Watch(ctx, js, bucket, ">", func() { seen = map[string]bool{} }, func(entry jetstream.KeyValueEntry) {
				if entry == nil {
					f.forgetUnseen(seen, set)
					seen = nil
					caughtUp()
					return
				}
				if name := f.take(entry, set); seen != nil {
					seen[name] = true
				}
			})
		})
	}
	group.Go(func() error {
		both.Wait()
		close(f.ready)
		return nil
	})
	return group.Wait()
}

// forgetUnseen drops what expired while nobody listened.
func (f *fleet) forgetUnseen(seen map[string]bool, set func(string, *siroccov1.Node)) {
	f.mu.RLock()
	var gone []string
	for name := range f.nodes {
		if !seen[name] {
			gone = append(gone, name)
		}
	}
	f.mu.RUnlock()
	for _, name := range gone {
		set(name, nil)
	}
}

// take hands an entry to set and returns the name of its node.
func (f *fleet) take(entry jetstream.KeyValueEntry, set func(name string, n *siroccov1.Node)) string {
	_, name, err := subject.ParseNodeKey(entry.Key())
	if err != nil {
		f.log.Warn("a node of a bad name", "err", err)
		return ""
	}
	if entry.Operation() != jetstream.KeyValuePut {
		set(name, nil)
		return name
	}
	n := &siroccov1.Node{}
	if err := proto.Unmarshal(entry.Value(), n); err != nil {
		f.log.Warn("a node that can't be read", "node", name, "err", err)
		return name
	}
	set(name, n)
	return name
}

func (f *fleet) member(name string) *member {
	m := f.nodes[name]
	if m == nil {
		m = &member{assumed: map[string]assumption{}}
		f.nodes[name] = m
	}
	return m
}

func (f *fleet) setNode(name string, n *siroccov1.Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.member(name)
	m.node = n
	if n == nil {
		return
	}
	m.suspectUntil = time.Time{}
	m.learn(n, time.Now())
	// What was put there before the node counted is in its count.
	seen := n.GetSeenAt().AsTime()
	m.used = amount(n.GetUsed())
	maps.DeleteFunc(m.assumed, func(_ string, a assumption) bool {
		if a.at.Before(seen) {
			return true
		}
		m.used = m.used.Add(a.need)
		return false
	})
}

// learn takes in how a node's starts went since its last report. The counts of an
// agent that has begun again are smaller.
func (m *member) learn(n *siroccov1.Node, now time.Time) {
	since := func(count int64, last *int64) int {
		more := count - *last
		if more < 0 {
			more = count
		}
		*last = count
		return int(more)
	}
	known := m.track != placement.Track{}
	succeeded, failed := since(n.GetStarts(), &m.starts), since(n.GetStartFailures(), &m.failures)
	if !known {
		succeeded, failed = 0, 0 // they may be as old as the agent
	}
	m.track.Saw(now, succeeded, failed, time.Duration(n.GetStartLatencyMicros())*time.Microsecond)
}

func (f *fleet) setOrders(name string, n *siroccov1.Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.member(name).orders = n
}

// rank makes the plan for a request and assumes the sandbox on the best node at
// once: requests of one moment must not all see the same last warm one.
func (f *fleet) rank(rules placement.Rules, template string, req placement.Request, now time.Time) placement.Plan {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = f.seen[:0]
	for name, m := range f.nodes {
		if m.node == nil {
			continue
		}
		warm := m.node.GetWarm()[template]
		if warm > 0 {
			for _, a := range m.assumed {
				if a.template == template {
					warm--
				}
			}
		}
		f.seen = append(f.seen, placement.Node{
			Name: name, Region: m.node.GetRegion(), Capacity: amount(m.node.GetCapacity()), Used: m.used,
			Ready: m.node.GetReady(), Cordoned: m.orders.GetCordoned() || m.orders.GetDraining(),
			Suspect: now.Before(m.suspectUntil), Warm: warm, Standing: m.track.Standing(now), Machine: machineOf(m.node),
		})
	}
	plan := rules.Rank(f.seen, req)
	if len(plan.Candidates) > 0 {
		f.nodes[plan.Candidates[0].Node].assume(req.ID, assumption{template, req.Need, now})
	}
	return plan
}

// machineOf is what a sandbox that runs on a node needs of another.
func machineOf(n *siroccov1.Node) placement.Machine {
	return placement.Machine{Runtime: n.GetRuntime(), Version: n.GetRuntimeVersion(), Processor: n.GetProcessor()}
}

// machine returns machineOf a node by its name; zero for one that is not known.
func (f *fleet) machine(name string) placement.Machine {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if m := f.nodes[name]; m != nil {
		return machineOf(m.node)
	}
	return placement.Machine{}
}

// address returns where a node's data listener is, and its region.
func (f *fleet) address(name string) (region, address string) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	m := f.nodes[name]
	if m == nil {
		return "", ""
	}
	return m.node.GetRegion(), m.node.GetAddress()
}

// assume counts a sandbox on a node until the node counts it itself.
func (f *fleet) assume(name, id, template string, need placement.Amount, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.member(name).assume(id, assumption{template, need, now})
}

func (m *member) assume(id string, a assumption) {
	m.forget(id)
	m.assumed[id] = a
	m.used = m.used.Add(a.need)
}

// unassume takes that back: the node has said no.
func (f *fleet) unassume(name, id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.member(name).forget(id)
}

func (m *member) forget(id string) {
	if a, ok := m.assumed[id]; ok {
		m.used = m.used.Sub(a.need)
		delete(m.assumed, id)
	}
}

// suspect keeps placements off a node that did not answer, until it is heard of
// again or the time is over.
func (f *fleet) suspect(name string, until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.member(name)
	m.suspectUntil = until
	m.track.Failed(time.Now())
}

func amount(c *siroccov1.NodeCapacity) placement.Amount {
	return placement.Amount{
		CPUMillis: c.GetCpuMillis(), MemoryBytes: c.GetMemoryBytes(), DiskBytes: c.GetDiskBytes(), Sandboxes: int64(c.GetSandboxes()),
	}
}
