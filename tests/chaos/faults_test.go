package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/sirocco-run/sirocco/pkg/havoc"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/tests/platform"
)

// arena is a region on a cluster of NATS servers, with what faults need.
type arena struct {
	*trial
	random *rand.Rand
	web    *http.Client
}

// fault is one thing that goes wrong.
type fault struct {
	name string
	// begin lets it happen and says to whom; heal ends it, and is called once.
	begin func(ctx context.Context, a *arena) (whom string, heal func() error, err error)
	// spares are the veterans that must be served all the time; nil: all.
	spares func(v *veteran, whom string) bool
	// least and most are how long it lasts.
	least, most time.Duration
	// outlived: sandboxes can be made again while it goes on.
	outlived bool
}

// faults are all that may happen in a round.
var faults = []fault{
	{name: "a NATS server is killed", begin: killBus, least: 500 * time.Millisecond, most: 4 * time.Second},
	{name: "a NATS server hangs", begin: hangBus, least: 2 * time.Second, most: 6 * time.Second},
	{name: "a NATS server is cut off from everybody", begin: isolateBus, least: 3 * time.Second, most: 7 * time.Second},
	{name: "a NATS server is cut off from the others, not from its clients", begin: splitBus, least: 18 * time.Second, most: 20 * time.Second, outlived: true},
	{name: "the disk of a NATS server is slow", begin: slowDisk, least: 3 * time.Second, most: 7 * time.Second},
	{name: "a node is cut off from the bus", begin: cutNode, least: 4 * time.Second, most: 12 * time.Second},
	{name: "the relay is cut off from a node", begin: cutRelay, spares: elsewhere, least: 2 * time.Second, most: 6 * time.Second},
	{name: "a node is slow", begin: slowNode, least: 3 * time.Second, most: 6 * time.Second},
	{name: "a node starts sandboxes slowly", begin: slowStarts, least: 3 * time.Second, most: 6 * time.Second},
	{name: "the relay is killed", begin: killRelay, spares: nobody, least: 0, most: time.Second},
	{name: "a node-agent is killed", begin: killNode, spares: elsewhere, least: 0, most: 2 * time.Second},
	{name: "a scheduler hangs", begin: hangScheduler, least: 2 * time.Second, most: 5 * time.Second},
}

// elsewhere spares the veterans of other nodes.
func elsewhere(v *veteran, whom string) bool { return v.Record.GetPlacement().GetNode() != whom }

func nobody(*veteran, string) bool { return false }

// server chooses a NATS server: every second time the one that leads the records.
func (a *arena) server(ctx context.Context) (*platform.Process, error) {
	bus := a.fleet.Bus()
	if a.random.IntN(2) == 0 {
		return a.fleet.Leader(ctx, subject.StreamOf(subject.BucketSandboxes))
	}
	return bus[a.random.IntN(len(bus))], nil
}

func (a *arena) node() *platform.Process {
	return a.fleet.Service(a.fleet.Nodes[a.random.IntN(len(a.fleet.Nodes))])
}

func kill(p *platform.Process) (string, func() error, error) {
	p.Kill()
	return p.Name, p.Start, nil
}

func hang(p *platform.Process) (string, func() error, error) {
	p.Freeze()
	return p.Name, func() error { p.Thaw(); return nil }, nil
}

func killBus(ctx context.Context, a *arena) (string, func() error, error) {
	p, err := a.server(ctx)
	if err != nil {
		return "", nil, err
	}
	return kill(p)
}

func hangBus(ctx context.Context, a *arena) (string, func() error, error) {
	p, err := a.server(ctx)
	if err != nil {
		return "", nil, err
	}
	return hang(p)
}

func isolateBus(ctx context.Context, a *arena) (string, func() error, error) {
	p, err := a.server(ctx)
	if err != nil {
		return "", nil, err
	}
	return p.Name, a.reconnect, a.fleet.Net.Isolate(p)
}

func splitBus(ctx context.Context, a *arena) (string, func() error, error) {
	p, err := a.server(ctx)
	if err != nil {
		return "", nil, err
	}
	return p.Name, a.reconnect, a.cut(p, a.fleet.Bus())
}

func slowDisk(ctx context.Context, a *arena) (string, func() error, error) {
	p, err := a.server(ctx)
	if err != nil {
		return "", nil, err
	}
	disk := a.fleet.Disks[p.Name]
	heal := func() error {
		began := time.Now()
		err := disk.Sync()
		if took := time.Since(began); err == nil && took < 50*time.Millisecond {
			err = fmt.Errorf("a synced write took %v: the disk is not slow", took)
		}
		return errors.Join(err, disk.Slow(p, 0))
	}
	// A synced write is five of the device: four of them a second.
	return p.Name, heal, disk.Slow(p, 20)
}

func cutNode(_ context.Context, a *arena) (string, func() error, error) {
	p := a.node()
	return p.Name, a.reconnect, a.cut(p, a.fleet.Bus())
}

func cutRelay(_ context.Context, a *arena) (string, func() error, error) {
	p := a.node()
	return p.Name, a.reconnect, a.cut(p, []*platform.Process{a.fleet.Service("relay")})
}

// cut cuts p off from all others of a list.
func (a *arena) cut(p *platform.Process, from []*platform.Process) error {
	var others []*platform.Process
	for _, o := range from {
		if o != p {
			others = append(others, o)
		}
	}
	return a.fleet.Net.Cut(p, others...)
}

// feltWithin is after how long a cut has been felt: whoever is connected says every 5 s that
// he is there.
const feltWithin = 10 * time.Second

// reconnect heals the network. A cut that nobody felt would be none.
func (a *arena) reconnect() error {
	err := platform.Poll(feltWithin, func() string {
		switch dropped, err := a.fleet.Net.Dropped(); {
		case err != nil:
			return err.Error()
		case dropped == 0:
			return "no packet was lost"
		}
		return ""
	})
	if herr := a.fleet.Net.Heal(); herr != nil {
		return herr
	}
	return err
}

// slowNode lets an agent work a fifth of the time.
func slowNode(ctx context.Context, a *arena) (string, func() error, error) {
	p := a.node()
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			p.Freeze()
			<-time.After(40 * time.Millisecond)
			p.Thaw()
			<-time.After(10 * time.Millisecond)
		}
	}()
	return p.Name, func() error { stop(); <-done; return nil }, nil
}

func slowStarts(ctx context.Context, a *arena) (string, func() error, error) {
	p := a.node()
	store, err := havoc.Open(ctx, a.fleet.JS)
	if err != nil {
		return "", nil, err
	}
	heal := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), settle)
		defer cancel()
		_, err := store.Clear(ctx)
		return err
	}
	return p.Name, heal, store.Set(ctx, a.fleet.Region, p.Name, havoc.Order{Latency: 2 * time.Second, Until: time.Now().Add(time.Minute)})
}

func killRelay(_ context.Context, a *arena) (string, func() error, error) {
	return kill(a.fleet.Service("relay"))
}

func killNode(_ context.Context, a *arena) (string, func() error, error) { return kill(a.node()) }

func hangScheduler(_ context.Context, a *arena) (string, func() error, error) {
	return hang(a.fleet.Service(fmt.Sprintf("scheduler-%d", 1+a.random.IntN(2))))
}
