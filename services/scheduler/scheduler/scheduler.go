// Package scheduler carries out the commands of a region: it accepts what was
// published, chooses a node for each new sandbox and tells nodes what is wanted
// of the others.
//
// It holds nothing that another scheduler, started now, could not rebuild:
// commands wait in a work queue that all schedulers share, records are changed
// by compare-and-swap, and a node has the last word about what still fits on
// it. So schedulers scale by starting more of them.
//
// Safety: at most one placement of an epoch, since the record is swapped
// before the node is asked. Liveness: a command is acknowledged after its
// effect is durable; one whose scheduler died comes again after 30 s, and the
// reaper publishes again what got lost otherwise.
//
// Fairness: commands of one tenant are carried out in the order of the queue, and
// tenants take turns: for a place among the commands in work, and for capacity
// that comes free.
//
// Concurrency: Run owns every goroutine; one for the fleet, those of the evacuator,
// one for the consumer, one for those who wait for capacity, one for each command in
// work.
package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/fair"
	"github.com/sirocco-run/sirocco/pkg/node"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	"github.com/sirocco-run/sirocco/services/scheduler/evacuator"
	"github.com/sirocco-run/sirocco/services/scheduler/placement"
	"github.com/sirocco-run/sirocco/services/scheduler/regions"
	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
)

// Config shapes a scheduler.
type Config struct {
	// Policy is "spread" or "pack".
	Policy string
	// Patience is how long a sandbox may wait for capacity before it fails with
	// no_capacity.
	Patience time.Duration
	// NodeTimeout is how long a node may take to say yes or no.
	NodeTimeout time.Duration
	Limits      admission.Limits
	Regions     regions.Config
}

// Flags adds the scheduler's flags, with the defaults.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Policy, "policy", "spread", "which node is preferred: the emptiest (spread) or the fullest that fits (pack)")
	fs.DurationVar(&c.Patience, "patience", 10*time.Second, "how long a sandbox may wait for capacity before it fails with no_capacity")
	fs.DurationVar(&c.NodeTimeout, "node-timeout", 2*time.Second, "how long a node may take to say yes or no")
	c.Limits.Flags(fs)
	c.Regions.Flags(fs)
}

// Scheduler is one of the schedulers of a region.
type Scheduler struct {
	env    program.Env
	cfg    Config
	rules  placement.Rules
	log    *slog.Logger
	tracer trace.Tracer
	fleet  *fleet
	store  *record.Store
	nodes  *node.Client
	crowd  *crowd
	room   *room
	work   *work
	// regions decides how much each region gets; nil where there is one.
	regions *regions.Controller
	tally   tally
	// evacuator empties nodes and the region when that is ordered.
	evacuator *evacuator.Evacuator
	// lines are the commands that have been taken from the queue and wait for one
	// of the slots.
	lines *fair.Queue[jetstream.Msg]
	slots chan struct{}

	placements metric.Int64Counter
	latency    metric.Float64Histogram
}

// New builds a scheduler. It does no I/O.
func New(env program.Env, cfg Config) (*Scheduler, error) {
	s := &Scheduler{env: env, cfg: cfg, log: env.Log, tracer: env.Tracer.Tracer("sirocco/scheduler")}
	switch cfg.Policy {
	case "spread":
		s.rules.Policy = placement.Spread
	case "pack":
		s.rules.Policy = placement.Pack
	default:
		return nil, fmt.Errorf("policy %q: want spread or pack", cfg.Policy)
	}
	s.fleet, s.evacuator = newFleet(env.Log), evacuator.New(env)
	s.crowd, s.work = newCrowd(maxWaiting), newWork()
	s.room = newRoom(func(w *waiter) placement.Plan { return s.fleet.rank(s.rules, w.template, w.req, time.Now()) })
	s.lines, s.slots = fair.NewQueue[jetstream.Msg](lineBytes), make(chan struct{}, atOnce)
	meter := env.Meter.Meter("sirocco/scheduler")
	var err error
	if len(env.Peers.Regions()) > 0 {
		if s.regions, err = regions.New(env, cfg.Regions, s.region); err != nil {
			return nil, err
		}
	}
	if s.placements, err = meter.Int64Counter("sirocco.scheduler.placements", metric.WithDescription("Asks of nodes, by answer")); err != nil {
		return nil, err
	}
	s.latency, err = meter.Float64Histogram("sirocco.scheduler.place.duration", metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10),
		metric.WithDescription("Time from taking a create command to a node's yes"))
	return s, err
}

// Run works until ctx ends. What is in work then comes again to another
// scheduler.
func (s *Scheduler) Run(ctx context.Context) error {
	if err := topology.Wait(ctx, s.env.JS); err != nil {
		return err
	}
	store, err := record.Open(ctx, s.env.JS)
	if err != nil {
		return err
	}
	s.store = store
	s.nodes = node.NewClient(s.env.NC, store, s.cfg.NodeTimeout)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.fleet.run(ctx, s.env.JS) })
	group.Go(func() error { return s.work.run(ctx) })
	group.Go(func() error { return s.room.run(ctx) })
	group.Go(func() error { return s.serveTraffic(ctx) })
	group.Go(func() error {
		select {
		case <-s.fleet.ready:
		case <-ctx.Done():
			return nil
		}
		return s.consume(ctx)
	})
	group.Go(func() error { return s.evacuator.Run(ctx) })
	if s.regions != nil {
		group.Go(func() error { return s.regions.Run(ctx) })
	}
	return group.Wait()
}

const (
	// pull is how many commands are asked for at once.
	pull = 256
	// atOnce is how many commands are in work at once, those that wait for capacity
	// not counted. It keeps the bus busy, and is what a tenant may find in front of
	// its turn.
	atOnce = 256
	// lineBytes is how much the commands that wait for their turn may take. As many
	// as the queue gives out at once (package topology) take a third of it, unless
	// they are large.
	lineBytes = 64 << 20
	// lineCost is what a command takes beside its body.
	lineCost = 1 << 10
)

// consume takes commands from the queue, in the order in which they came, and
// carries them out in turns of their tenants.
func (s *Scheduler) consume(ctx context.Context) error {
	consumer, err := s.env.JS.Consumer(ctx, subject.StreamCommands, subject.ConsumerScheduler)
	if err != nil {
		return fmt.Errorf("bind to the command queue: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	stopLag, err := s.observeLag(consumer)
	if err != nil {
		return err
	}
	defer stopLag()
	consuming, err := consumer.Consume(func(msg jetstream.Msg) {
		s.work.begin(msg)
		if s.lines.Push(ctx, subject.Tenant(msg.Subject()), msg, lineCost+len(msg.Data())) != nil {
			s.giveBack(msg)
		}
	}, jetstream.PullMaxMessages(pull), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		s.log.Warn("command queue", "err", err)
	}))
	if err != nil {
		return fmt.Errorf("consume the command queue: %w", err)
	}
	s.log.Info("scheduler ready", "policy", s.cfg.Policy)
	s.serveLines(ctx, &wg)
	consuming.Stop()
	<-consuming.Closed()
	for {
		_, msg, ok := s.lines.TryPop()
		if !ok {
			return nil
		}
		s.giveBack(msg)
	}
}

// serveLines carries out what is in the lines until ctx ends.
func (s *Scheduler) serveLines(ctx context.Context, running *sync.WaitGroup) {
	for {
		s.slots <- struct{}{}
		_, msg, err := s.lines.Pop(ctx)
		if err != nil {
			<-s.slots
			return
		}
		running.Go(func() {
			defer func() { <-s.slots }()
			s.handle(ctx, msg)
		})
	}
}

// giveBack leaves a command to another scheduler.
func (s *Scheduler) giveBack(msg jetstream.Msg) {
	s.work.end(msg)
	_ = msg.Nak()
}

// observeLag shows how many commands wait in the queue, how many have been given
// to schedulers, and how many of these wait for their turn here, each time metrics are collected.
func (s *Scheduler) observeLag(consumer jetstream.Consumer) (stop func(), err error) {
	meter := s.env.Meter.Meter("sirocco/scheduler")
	gauge, err := meter.Int64ObservableGauge("sirocco.bus.commands", metric.WithDescription("Commands in the queue, by state: waiting, in work, or in line for it"))
	if err != nil {
		return nil, err
	}
	registration, err := meter.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		info, err := consumer.Info(ctx)
		if err != nil {
			return fmt.Errorf("read the command queue: %w", err)
		}
		o.ObserveInt64(gauge, int64(info.NumPending), metric.WithAttributes(attribute.String("state", "waiting"))) //nolint:gosec // a count
		o.ObserveInt64(gauge, int64(info.NumAckPending), metric.WithAttributes(attribute.String("state", "in_work")))
		o.ObserveInt64(gauge, int64(s.lines.Len()), metric.WithAttributes(attribute.String("state", "in_line")))
		return nil
	}, gauge)
	if err != nil {
		return nil, err
	}
	return func() { _ = registration.Unregister() }, nil
}
