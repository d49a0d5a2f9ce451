// Package agent is the node-agent: the only authority on what runs on its node
// and what still fits. It says yes or no to the scheduler, brings sandboxes up,
// watches over them, enforces their deadlines and serves their exec, files,
// logs and tunnels.
//
// What it knows of a sandbox is in a journal on disk, so that an agent which
// was killed finds every sandbox again and goes on; the sandboxes themselves do
// not notice. With the bus away it goes on serving and enforcing; what has to
// be written down is written when the bus is back.
//
// Safety: a sandbox is run only for the epoch that this node was asked to run,
// and is destroyed as soon as a record says otherwise. Liveness: every sandbox
// is compared with its record when the agent starts and every 20 s.
//
// Concurrency: Run owns every goroutine: one per sandbox (machine.run), one
// that follows its supervisor while it runs, and a few for the node as a whole.
package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/havoc"
	"github.com/sirocco-run/sirocco/pkg/image"
	"github.com/sirocco-run/sirocco/pkg/link"
	"github.com/sirocco-run/sirocco/pkg/network"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/rundir"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
)

// Agent is the agent of one node.
type Agent struct {
	env     program.Env
	cfg     Config
	name    string
	bootID  string
	log     *slog.Logger
	tracer  trace.Tracer
	metrics *metrics

	parts    parts
	ledger   *ledger
	journal  *journal[entry]
	cells    *cells
	pools    *pools
	archives *archives
	moves    *moves
	fences   map[string]*fence // by region
	keeper   *keeper
	store    *record.Store
	abroad   *record.Peers
	tokens   ed25519.PublicKey
	imports  *imports
	// havoc is what this node suffers on request; nil for nothing.
	havoc *havoc.Victim

	whole    atomic.Bool // every sandbox has been found again
	ready    atomic.Bool // it takes new ones
	cordoned atomic.Bool
	draining atomic.Bool
	disk     atomic.Int32 // a diskLevel
	address  atomic.Pointer[string]
	// processor is what a sandbox from elsewhere must have had too.
	processor string
	// linkSocket is where relays on this machine connect; "" if it can't be offered.
	linkSocket string
	beat       chan struct{} // poked when the heartbeat should not wait
	urgent     chan struct{} // poked when it must come at once

	// placing is held from the look for a sandbox until it is among the machines.
	placing sync.Mutex

	mu       sync.Mutex
	machines map[string]*machine
	running  sync.WaitGroup
	// How the starts went; see siroccov1.Node.
	starts, startFailures int64
}

// New builds an agent. It does no I/O.
func New(env program.Env, cfg Config) (*Agent, error) {
	if env.Instance == "" {
		return nil, errors.New("an agent needs a name: set --instance")
	}
	a := &Agent{
		env: env, cfg: cfg, name: env.Instance, log: env.Log.With("node", env.Instance),
		tracer: env.Tracer.Tracer("sirocco/node-agent"), beat: make(chan struct{}, 1), urgent: make(chan struct{}, 1),
		machines: map[string]*machine{}, abroad: record.NewPeers(env.Peers),
	}
	if cfg.Faults {
		a.havoc = havoc.NewVictim(env.Region, a.name)
	}
	var err error
	a.metrics, err = newMetrics(env.Meter.Meter("sirocco/node-agent"), a)
	return a, err
}

// Run works until ctx ends. Sandboxes live on; the next agent of this name on
// this machine finds them.
func (a *Agent) Run(ctx context.Context) error {
	var err error
	if a.cfg, err = a.cfg.complete(); err != nil {
		return err
	}
	if err := a.open(); err != nil {
		return err
	}
	defer a.close()
	if err := a.openMoves(); err != nil {
		return err
	}
	defer a.moves.dialer.Close()
	if err := topology.Wait(ctx, a.env.JS); err != nil {
		return err
	}
	if a.store, err = record.Open(ctx, a.env.JS); err != nil {
		return err
	}
	if err := a.openKeeper(ctx); err != nil {
		return err
	}
	a.imports = newImports(a.env.JS, a.parts.images)
	if err := a.stock(); err != nil {
		return err
	}
	tlsConfig, err := a.env.Keys.ServerTLS()
	if err != nil {
		return err
	}
	if a.tokens, err = a.env.Keys.TokenPublic(); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", a.cfg.Listen)
	if err != nil {
		return fmt.Errorf("open the data listener: %w", err)
	}
	defer func() { _ = listener.Close() }()
	address := a.cfg.Advertise
	if address == "" {
		address = listener.Addr().String()
	}
	a.address.Store(&address)
	local, err := a.listenLocal()
	if err != nil {
		return err
	}
	if local != nil {
		defer func() { _ = local.Close() }()
	}
	data, err := a.newData()
	if err != nil {
		return err
	}

	group, gctx := errgroup.WithContext(ctx)
	// Sandboxes are told to let go only after everything that serves them has
	// ended.
	mctx, release := context.WithCancel(context.WithoutCancel(ctx))
	defer a.pools.empty()
	defer a.running.Wait()
	defer release()
	if err := a.adopt(gctx, mctx); err != nil {
		return fmt.Errorf("adopt sandboxes: %w", err)
	}
	a.whole.Store(true)
	group.Go(func() error { return a.parts.slots.Run(gctx) })
	handle := func(ctx context.Context, h link.Header) (func(net.Conn), error) {
		switch h.Kind {
		case link.KindMove:
			return a.admit(mctx, h)
		case link.KindGuard:
			return a.keeper.admit(ctx, h)
		case link.KindPort, link.KindData:
		}
		return data.handle(ctx, h)
	}
	group.Go(func() error { return link.Serve(gctx, listener, tlsConfig, a.log, handle) })
	if local != nil {
		group.Go(func() error { return link.Serve(gctx, local, tlsConfig, a.log, handle) })
	}
	group.Go(func() error { return data.run(gctx) })
	group.Go(func() error { return a.serve(gctx, mctx) })
	group.Go(func() error { return a.heartbeats(gctx) })
	group.Go(func() error { return a.havoc.Run(gctx, a.env.JS) })
	group.Go(func() error { return a.followOrders(gctx) })
	group.Go(func() error { return a.reconcile(gctx) })
	group.Go(func() error { return a.renewFences(gctx) })
	group.Go(func() error { return a.keeper.run(gctx, mctx) })
	group.Go(func() error { return a.guardDisk(gctx) })
	group.Go(func() error { return a.pools.run(gctx) })
	group.Go(func() error { return a.followPools(gctx) })
	group.Go(func() error { return a.followImages(gctx) })
	group.Go(func() error {
		if a.pools.awaitFilled(gctx) == nil {
			a.readyNow()
			a.log.Info("node ready", "address", address, "runtime", a.parts.runtime.Name(), "sandboxes", a.live())
		}
		return nil
	})
	return group.Wait()
}

// listenLocal opens the link's socket for relays on this machine; nil where the
// state folder lies too deep for one.
func (a *Agent) listenLocal() (net.Listener, error) {
	local, err := link.ListenLocal(filepath.Join(a.cfg.StateDir, "link"))
	if errors.Is(err, link.ErrLongPath) {
		a.log.Info("no socket for relays on this machine, they use mutual TLS: the path of the state folder is too long", "state_dir", a.cfg.StateDir)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	a.linkSocket = local.Addr().String()
	return local, nil
}

// runDir is the folder of what this node keeps as long as its sandboxes. Several
// simulated nodes may have one name: theirs is the state folder.
func (a *Agent) runDir() string {
	if a.cfg.Runtime == "sim" {
		return a.cfg.StateDir
	}
	return rundir.Of(a.name)
}

// open makes the parts that sandboxes are made of.
func (a *Agent) open() error {
	if a.cfg.Runtime != "sim" {
		if err := rundir.Ensure(); err != nil {
			return err
		}
	}
	var err error
	if a.journal, err = openJournal[entry](filepath.Join(a.runDir(), "journal")); err != nil {
		return err
	}
	if a.archives, err = openArchives(filepath.Join(a.cfg.StateDir, "logs"), a.cfg.LogBytes, a.cfg.LogAge); err != nil {
		return err
	}
	if err := a.readProcessor(); err != nil {
		return err
	}
	a.ledger = newLedger(amount{a.cfg.CPUMillis, a.cfg.MemoryBytes, int64(a.cfg.Sandboxes)})
	if a.bootID, err = link.MachineID(); err != nil {
		return err
	}
	if a.cfg.Runtime == "sim" {
		if a.cfg.Simulation == nil {
			a.cfg.Simulation = NewSimulation()
		}
		a.parts = parts{runtime: a.cfg.Simulation.runtime(a.cfg), images: simImages{}, slots: noSlots{}}
		return nil
	}
	rt, err := gvisor.New(gvisor.Config{
		RunscPath: a.cfg.Runsc, StateDir: filepath.Join(a.runDir(), "sandboxes"),
		DiskDir: filepath.Join(a.cfg.StateDir, "disks"), Logger: a.log,
	})
	if err != nil {
		return err
	}
	imgs, err := image.New(image.Options{
		Dir: a.cfg.ImageDir, Supervisor: a.cfg.Supervisor, Base: a.cfg.Base,
		PrivateRegistries: a.cfg.PrivateRegistries, Logger: a.log,
	})
	if err != nil {
		_ = rt.Close()
		return err
	}
	pool, err := a.newNetwork()
	if err != nil {
		_ = rt.Close()
		_ = imgs.Close()
		return err
	}
	a.parts = parts{runtime: rt, images: imgs, slots: pool}
	return nil
}

func (a *Agent) newNetwork() (*network.Pool, error) {
	cfg := network.Config{Node: a.name, PoolSize: a.cfg.NetworkSlots, Uplink: a.cfg.Uplink, Logger: a.log}
	if a.cfg.SandboxCIDR != "" {
		var err error
		if cfg.CIDR, err = netip.ParsePrefix(a.cfg.SandboxCIDR); err != nil {
			return nil, fmt.Errorf("sandbox-cidr: %w", err)
		}
	}
	for _, d := range a.cfg.SandboxDNS {
		addr, err := netip.ParseAddr(d)
		if err != nil {
			return nil, fmt.Errorf("sandbox-dns: %w", err)
		}
		cfg.DNS = append(cfg.DNS, addr)
	}
	for _, c := range a.cfg.Deny {
		prefix, err := admission.ParseRange(c)
		if err != nil {
			return nil, fmt.Errorf("deny-cidrs: %w", err)
		}
		cfg.Deny = append(cfg.Deny, prefix)
	}
	return network.New(cfg)
}

func (a *Agent) close() {
	for _, closer := range []interface{ Close() error }{a.parts.runtime, a.parts.images, a.parts.slots} {
		if err := closer.Close(); err != nil {
			a.log.Warn("close", "err", err)
		}
	}
	// Folders in which nothing is left; those with something can't be removed.
	if a.cfg.Runtime != "sim" {
		for _, dir := range []string{"journal", "cells", "."} {
			_ = os.Remove(filepath.Join(a.runDir(), dir))
		}
	}
}

// launch runs a machine in its own goroutine.
func (a *Agent) launch(ctx context.Context, m *machine, adopted bool) {
	a.mu.Lock()
	a.machines[m.id] = m
	a.mu.Unlock()
	a.running.Go(func() { m.run(ctx, adopted) })
}

// find returns the machine of a sandbox; nil if the node does not hold it.
func (a *Agent) find(id string) *machine {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.machines[id]
}

// forget drops a machine that is gone.
func (a *Agent) forget(m *machine) {
	a.mu.Lock()
	if a.machines[m.id] == m {
		delete(a.machines, m.id)
	}
	a.mu.Unlock()
	a.pokeHeartbeat()
}

func (a *Agent) all() []*machine {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*machine, 0, len(a.machines))
	for _, m := range a.machines {
		out = append(out, m)
	}
	return out
}

func (a *Agent) live() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.machines)
}

// started counts a start.
func (a *Agent) started(ctx context.Context, took time.Duration, warm bool) {
	a.mu.Lock()
	a.starts++
	a.mu.Unlock()
	a.metrics.starts.Record(ctx, took.Seconds(), metric.WithAttributes(attribute.Bool("warm", warm)))
	a.pokeHeartbeat()
}

// startFailed counts a start that failed through no fault of its request: the
// scheduler then prefers other nodes.
func (a *Agent) startFailed() {
	a.mu.Lock()
	a.startFailures++
	a.mu.Unlock()
	a.pokeHeartbeat()
}

func (a *Agent) ended(ctx context.Context, cause siroccov1.Cause) {
	a.metrics.end(ctx, record.CauseName(cause))
}
