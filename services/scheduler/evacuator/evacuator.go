// Package evacuator empties regions and nodes: it drives the orders of its region
// (package evacuation) by publishing migrate commands, and follows the records to see
// what becomes of them.
//
// One scheduler of a region at a time does this, who holds the lease; who comes after it
// goes on from the order's entry in the bucket and from the records. Safety: the entry is
// swapped before the commands go, so of two that hold themselves for the driver one
// sends; and the key of a command is made from the order, the sandbox and the attempt, so
// that one that is sent twice, or replayed, moves nothing twice. Liveness: every command
// has an outcome, in the record, by a refusal, or after answerLimit.
package evacuator

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/evacuation"
	"github.com/sirocco-run/sirocco/pkg/lease"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/weight"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"golang.org/x/sync/errgroup"
)

const (
	// every is the time between two steps of an order.
	every = 200 * time.Millisecond
	// lookAround is the time between two looks at the weights of the regions, and at
	// orders that stand although nothing is left to move.
	lookAround = time.Second
)

// Evacuator is one scheduler's part in this.
type Evacuator struct {
	env   program.Env
	log   *slog.Logger
	store *evacuation.Store
	// records are those of this region, abroad those of others.
	records *record.Store
	abroad  *record.Peers

	// known is how the regions are, standing what was told about those that are empty.
	// Only who has the lease uses them.
	known    []weight.Decision
	standing map[string]*word

	mu sync.Mutex
	// orders are all there are, by key; news are records and refusals that have come.
	orders map[string]entry
	news   news
}

type entry struct {
	order    *siroccov1.Evacuation
	revision uint64
}

// news is what has come since the last step.
type news struct {
	records  []*siroccov1.Sandbox
	refusals []refusal
}

type refusal struct {
	order, sandbox, tenant, code, reason string
	attempt                              int
}

// New builds an evacuator, without I/O.
func New(env program.Env) *Evacuator {
	return &Evacuator{env: env, log: env.Log, orders: map[string]entry{}, standing: map[string]*word{}, abroad: record.NewPeers(env.Peers)}
}

// Run drives the region's orders whenever it has the lease, until ctx ends.
//
// Concurrency: one goroutine follows the orders, and one drives them; while there is one
// to drive, a third follows the records. Run waits for all.
func (d *Evacuator) Run(ctx context.Context) (err error) {
	if d.store, err = evacuation.Open(ctx, d.env.JS); err != nil {
		return err
	}
	if d.records, err = record.Open(ctx, d.env.JS); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.follow(ctx) })
	group.Go(func() error {
		return lease.New(d.env.JS, subject.LeaseEvacuations, d.env.Instance, d.log).Run(ctx, d.drive)
	})
	return group.Wait()
}

// follow keeps the orders.
func (d *Evacuator) follow(ctx context.Context) error {
	var seen map[string]entry
	return bus.Watch(ctx, d.env.JS, subject.BucketEvacuations, ">", func() { seen = map[string]entry{} }, func(e jetstream.KeyValueEntry) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if e == nil {
			d.orders, seen = seen, nil
			return
		}
		into := d.orders
		if seen != nil {
			into = seen
		}
		delete(into, e.Key())
		if e.Operation() != jetstream.KeyValuePut {
			return
		}
		order, err := evacuation.Decode(e.Key(), e.Value())
		if err != nil {
			d.log.Error("an order that can't be read", "err", err)
			return
		}
		if order.GetRegion() == d.env.Region {
			into[e.Key()] = entry{order, e.Revision()}
		}
	})
}

// open are the orders about which something is left to do.
func (d *Evacuator) open() map[string]entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	open := map[string]entry{}
	for key, e := range d.orders {
		if !evacuation.Settled(e.order) {
			open[key] = e
		}
	}
	return open
}

// drive works as long as the lease is held.
func (d *Evacuator) drive(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var looked time.Time
	d.standing = map[string]*word{}
	for {
		if now := time.Now(); now.Sub(looked) >= lookAround {
			looked = now
			d.stand(ctx, now)
		}
		if len(d.open()) > 0 {
			if err := d.campaign(ctx); err != nil && ctx.Err() == nil {
				d.log.Warn("evacuations are not driven; it is tried again", "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// stand keeps regions closed that were evacuated, until that is cancelled.
func (d *Evacuator) stand(ctx context.Context, now time.Time) {
	d.mu.Lock()
	e, ok := d.orders[subject.EvacuationKey(d.env.Region, "")]
	d.mu.Unlock()
	if !ok || !evacuation.Over(e.order) || e.order.GetCancelled() != nil {
		return
	}
	w := d.standing[e.order.GetId()]
	if w == nil {
		w = &word{}
		d.standing = map[string]*word{e.order.GetId(): w}
	}
	d.say(ctx, w, e.order, 0, now)
}

// campaign drives all orders until none is open.
func (d *Evacuator) campaign(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	group, gctx := errgroup.WithContext(ctx)
	defer func() {
		stop()
		_ = group.Wait()
	}()
	d.take()
	refusals, err := d.env.NC.Subscribe(subject.CommandEvent("*", "*"), d.hear)
	if err != nil {
		return err
	}
	defer func() { _ = refusals.Unsubscribe() }()
	view := record.NewView(d.records, record.ViewOptions{OnChange: d.see})
	group.Go(func() error { return view.Run(gctx) })
	select {
	case <-view.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	campaigns := map[string]*campaign{}
	var looked time.Time
	for {
		open, now := d.open(), time.Now()
		if len(open) == 0 {
			return nil
		}
		if now.Sub(looked) >= lookAround {
			looked = now
			if err := d.readKnown(ctx); err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) && ctx.Err() == nil {
				d.log.Warn("the weights of the regions were not read", "err", err)
			}
		}
		d.enlist(campaigns, open, view, now)
		d.tell(campaigns, view, now)
		for _, c := range campaigns {
			if err := d.step(ctx, c, view, now); err != nil && ctx.Err() == nil {
				d.log.Warn("a step of an evacuation failed; it is tried again", "order", c.order.GetId(), "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// enlist makes campaigns of orders that are new, brings the others up to date, and drops
// those that are over.
func (d *Evacuator) enlist(campaigns map[string]*campaign, open map[string]entry, view *record.View, now time.Time) {
	for key, c := range campaigns {
		if e, ok := open[key]; !ok || e.order.GetId() != c.order.GetId() {
			delete(campaigns, key)
		}
	}
	for key, e := range open {
		c := campaigns[key]
		if c == nil {
			c = newCampaign(e.order, e.revision)
			view.Each(func(sb *siroccov1.Sandbox) bool {
				c.settle(sb, now)
				return true
			})
			c.rebuilt(view.Lookup)
			campaigns[key] = c
		}
		if e.revision > c.revision {
			c.order, c.revision = e.order, e.revision
		}
	}
}

// see is told of every revision of every record.
func (d *Evacuator) see(old, sb *siroccov1.Sandbox) {
	if sb == nil {
		sb = &siroccov1.Sandbox{Id: old.GetId(), State: siroccov1.State_STATE_STOPPED}
	}
	if sb.GetMove() == nil && !lifecycle.Ended(sb.GetState()) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.news.records = append(d.news.records, sb)
}

// hear is told of every command that is refused.
func (d *Evacuator) hear(msg *nats.Msg) {
	tenant, _, key, err := subject.ParseEvent(msg.Subject)
	if err != nil {
		return
	}
	order, sandbox, n, err := evacuation.ParseKey(key)
	if err != nil {
		return // somebody else's
	}
	why := &siroccov1.RejectedCommand{}
	if err := bus.Decode(msg.Header, msg.Data, why); err != nil || why.GetVerb() != subject.VerbMigrate {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.news.refusals = append(d.news.refusals, refusal{order: order, sandbox: sandbox, tenant: tenant, code: why.GetCode(), reason: why.GetMessage(), attempt: n})
}

// take returns the news and forgets them.
func (d *Evacuator) take() news {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.news
	d.news = news{}
	return n
}

// tell hands the news to the campaigns.
func (d *Evacuator) tell(campaigns map[string]*campaign, view *record.View, now time.Time) {
	news := d.take()
	for _, c := range campaigns {
		for _, sb := range news.records {
			c.settle(sb, now)
			if lifecycle.Ended(sb.GetState()) {
				c.gone(sb.GetId())
			}
		}
		for _, r := range news.refusals {
			if r.order == c.order.GetId() {
				c.refuse(r.sandbox, r.attempt, r.code, r.reason, view.Lookup(r.sandbox), now)
			}
		}
	}
}
