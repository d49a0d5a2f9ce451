// Package reaper is the service of time and order: it ends what nobody else
// ended, finds what is on no list and forgets what is over.
//
// It does not trust the records alone: it compares them with what the nodes
// really run. Whatever it does goes through compare-and-swap and can be done
// twice, so that any number of reapers may run; one is enough.
//
// Concurrency: Run owns every goroutine: the view of the records, the ear for
// nodes, and three tickers.
package reaper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/node"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/reaper/sweep"
	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"
)

// Config shapes a reaper.
type Config struct {
	Rules sweep.Rules
	// SweepEvery is how often the records are looked through, InventoryEvery how
	// often each node is asked what it runs, ClaimsEvery how often names and
	// ports are checked.
	SweepEvery, InventoryEvery, ClaimsEvery time.Duration
}

// Flags adds the reaper's flags, with the defaults.
func (c *Config) Flags(fs *pflag.FlagSet) {
	c.Rules = sweep.DefaultRules()
	fs.DurationVar(&c.Rules.NodeLost, "node-lost-after", c.Rules.NodeLost, "silence after which a node, and what runs on it, counts as lost")
	fs.DurationVar(&c.Rules.Retention, "retention", c.Rules.Retention, "how long the record of an ended sandbox is kept")
	fs.IntVar(&c.Rules.Retained, "retained", c.Rules.Retained, "how many records of ended sandboxes are kept at most, the newest; 0 for any `number`")
	fs.DurationVar(&c.SweepEvery, "sweep-every", time.Second, "how often the records are looked through")
	fs.DurationVar(&c.InventoryEvery, "inventory-every", 15*time.Second, "how often each node is asked what it really runs")
	fs.DurationVar(&c.ClaimsEvery, "claims-every", time.Minute, "how often names and public ports are checked for owners that are gone")
}

// nodeTimeout bounds each ask of a node.
const nodeTimeout = 2 * time.Second

// Reaper is one reaper of a region.
type Reaper struct {
	env     program.Env
	cfg     Config
	log     *slog.Logger
	actions metric.Int64Counter

	store  *record.Store
	abroad *record.Peers
	view   *record.View
	nodes  *node.Client

	ear   *ear
	ended chan *siroccov1.Sandbox
	// shadows belongs to the goroutine that follows them.
	shadows *shadows
}

// New builds a reaper. It does no I/O.
func New(env program.Env, cfg Config) (*Reaper, error) {
	actions, err := env.Meter.Meter("sirocco/reaper").Int64Counter("sirocco.reaper.actions",
		metric.WithDescription("What the reaper did, by kind; all but forget mean that something else did not do its part"))
	return &Reaper{
		env: env, cfg: cfg, log: env.Log, actions: actions,
		ear: newEar(), ended: make(chan *siroccov1.Sandbox, 4096), shadows: newShadows(), abroad: record.NewPeers(env.Peers),
	}, err
}

// Run works until ctx ends.
func (r *Reaper) Run(ctx context.Context) error {
	if err := topology.Wait(ctx, r.env.JS); err != nil {
		return err
	}
	store, err := record.Open(ctx, r.env.JS)
	if err != nil {
		return err
	}
	r.store, r.nodes = store, node.NewClient(r.env.NC, store, nodeTimeout)
	r.view = record.NewView(store, record.ViewOptions{KeepEnded: true, OnChange: r.changed})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.view.Run(ctx) })
	group.Go(func() error { return r.listen(ctx) })
	group.Go(func() error { return r.release(ctx) })
	select {
	case <-r.view.Ready():
	case <-ctx.Done():
		return group.Wait()
	}
	r.log.Info("reaper ready", "records", r.view.Len())
	group.Go(func() error { return every(ctx, r.cfg.SweepEvery, r.sweep) })
	group.Go(func() error { return every(ctx, r.cfg.InventoryEvery, r.inventory) })
	group.Go(func() error { return every(ctx, r.cfg.ClaimsEvery, r.claims) })
	if len(r.env.Peers.Regions()) > 0 {
		group.Go(func() error { return every(ctx, r.cfg.SweepEvery, r.followShadows) })
	}
	return group.Wait()
}

func every(ctx context.Context, d time.Duration, do func(context.Context)) error {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			do(ctx)
		}
	}
}

// changed hands records that have just ended to release.
func (r *Reaper) changed(old, sb *siroccov1.Sandbox) {
	if sb == nil || !lifecycle.Ended(sb.GetState()) || old != nil && lifecycle.Ended(old.GetState()) {
		return
	}
	if sb.GetSpec().GetName() == "" && len(sb.GetTunnels()) == 0 {
		return
	}
	select {
	case r.ended <- sb:
	default: // full: the claims sweep frees what is missed here
	}
}

// release frees names and public ports as soon as their owners end.
func (r *Reaper) release(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case sb := <-r.ended:
			r.store.Release(ctx, sb, r.env.Region)
		}
	}
}

// sweep looks through the records. While the bus is away, and until the nodes
// are listened to again, there is nothing to judge by.
func (r *Reaper) sweep(ctx context.Context) {
	if !r.env.NC.IsConnected() || !r.ear.listens(r.connection()) {
		return
	}
	now := time.Now()
	last := func(node string) time.Time { return r.ear.last(node, now) }
	var actions []sweep.Action
	var kept []*siroccov1.Sandbox
	r.view.Each(func(sb *siroccov1.Sandbox) bool {
		if lifecycle.Shadow(sb, r.env.Region) {
			return true // its region's reaper sees to it
		}
		if a, ok := sweep.Record(sb, last, now, r.cfg.Rules); ok {
			actions = append(actions, a)
		} else if lifecycle.Ended(sb.GetState()) {
			kept = append(kept, sb)
		}
		return true
	})
	r.carryOut(ctx, append(actions, sweep.Excess(kept, r.cfg.Rules)...))
}

// inventory asks each living node what it runs.
func (r *Reaper) inventory(ctx context.Context) {
	placed := map[string][]*siroccov1.Sandbox{}
	asked := time.Now()
	r.view.Each(func(sb *siroccov1.Sandbox) bool {
		if lifecycle.Live(sb.GetState()) && !lifecycle.Shadow(sb, r.env.Region) {
			name := sb.GetPlacement().GetNode()
			placed[name] = append(placed[name], sb)
		}
		return true
	})
	var group errgroup.Group
	group.SetLimit(32)
	for _, name := range r.ear.living() {
		group.Go(func() error {
			items, err := r.nodes.Inventory(ctx, name)
			if err != nil {
				return nil //nolint:nilerr // a node that does not answer is not a node that runs nothing
			}
			r.carryOut(ctx, sweep.Inventory(name, items, placed[name], r.view.Lookup, asked, r.cfg.Rules))
			return nil
		})
	}
	_ = group.Wait()
}

// claims frees names and ports whose owners are gone.
func (r *Reaper) claims(ctx context.Context) {
	freed, err := r.store.SweepClaims(ctx)
	if err != nil && ctx.Err() == nil {
		r.log.Warn("sweep of names and ports", "err", err)
	}
	for _, what := range freed {
		r.log.Info("freed", "what", what)
	}
}

// together is how many actions are carried out at a time: enough to forget as many
// sandboxes as a region can make.
const together = 64

func (r *Reaper) carryOut(ctx context.Context, actions []sweep.Action) {
	var group errgroup.Group
	group.SetLimit(together)
	for _, a := range actions {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			r.carryOutOne(ctx, a)
			return nil
		})
	}
	_ = group.Wait()
}

func (r *Reaper) carryOutOne(ctx context.Context, a sweep.Action) {
	err := r.do(ctx, a)
	if errors.Is(err, lifecycle.ErrElsewhere) {
		return // it has left meanwhile
	}
	r.actions.Add(ctx, 1, metric.WithAttributes(attribute.String("kind", a.Kind.String())))
	level := slog.LevelInfo
	if a.Kind == sweep.Forget {
		level = slog.LevelDebug
	}
	if err != nil {
		level = slog.LevelWarn
	}
	r.log.Log(ctx, level, "reaped", "kind", a.Kind.String(), "sandbox", a.Sandbox.GetId(), "state", record.StateName(a.Sandbox.GetState()), "reason", a.Message, "err", err)
}

func (r *Reaper) do(ctx context.Context, a sweep.Action) error {
	sb := a.Sandbox
	switch a.Kind {
	case sweep.Republish:
		return r.republish(ctx, sb)
	case sweep.Stop:
		stopped, err := r.store.Update(ctx, sb.GetTenant(), sb.GetId(), nil, r.here(lifecycle.Stop{Cause: a.Cause, Reason: a.Message}))
		if err != nil {
			return err
		}
		return r.nodes.Tell(ctx, stopped)
	case sweep.Tell:
		if sb.GetRevision() == 0 { // from an inventory: there may be no record
			_, err := r.nodes.Sync(ctx, sb.GetPlacement().GetNode(), sb.GetTenant(), sb.GetId())
			return err
		}
		return r.nodes.Tell(ctx, sb)
	case sweep.Finish:
		if a.Cause == siroccov1.Cause_CAUSE_NODE_LOST {
			if elsewhere, err := r.settleGuards(ctx, sb); elsewhere || err != nil {
				return err
			}
		}
		_, err := r.store.Update(ctx, sb.GetTenant(), sb.GetId(), nil, r.here(lifecycle.Finish{
			Epoch: sb.GetPlacement().GetEpoch(), End: &siroccov1.End{Cause: a.Cause, Message: a.Message},
		}))
		return err
	case sweep.Forget:
		return r.store.Delete(ctx, sb.GetTenant(), sb.GetId())
	}
	return fmt.Errorf("unknown action %d", a.Kind)
}

// here takes a step of a sandbox that is in this region; one that has left meanwhile
// needs it no more.
func (r *Reaper) here(step lifecycle.Step) lifecycle.Step {
	return lifecycle.Here{Region: r.env.Region, Step: step}
}

// republish puts a create command on the queue again. Its key is the same, so a
// scheduler that has it already finds the same sandbox.
func (r *Reaper) republish(ctx context.Context, sb *siroccov1.Sandbox) error {
	msg, err := bus.NewMsg(ctx, subject.Command(sb.GetTenant(), subject.VerbCreate, sb.GetIdempotencyKey()), sb.GetSpec())
	if err != nil {
		return err
	}
	msg.Header.Set(subject.HeaderSandbox, sb.GetId())
	// At most once every few seconds, however many reapers there are.
	id := fmt.Sprintf("republish/%s/%d", sb.GetId(), time.Now().Unix()/int64(r.cfg.Rules.Placed.Seconds()))
	_, err = r.env.JS.PublishMsg(ctx, msg, jetstream.WithMsgID(id))
	return err
}

// connection counts the connections to the bus.
func (r *Reaper) connection() uint64 { return r.env.NC.Stats().Reconnects }

// listen keeps an ear on the nodes.
func (r *Reaper) listen(ctx context.Context) error {
	begin := func() { r.ear.begin(r.connection(), time.Now()) }
	return bus.Watch(ctx, r.env.JS, subject.BucketNodes, ">", begin, func(e jetstream.KeyValueEntry) {
		if e == nil {
			return
		}
		if _, name, err := subject.ParseNodeKey(e.Key()); err == nil {
			r.ear.mark(name, e.Operation() == jetstream.KeyValuePut, time.Now())
		}
	})
}
