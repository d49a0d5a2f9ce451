package evacuator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/evacuation"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// publishTime bounds how long the bus may take for the commands of one step.
	publishTime = 3 * time.Second
	// looksAtOnce is how many sandboxes are looked for in other regions in one step.
	looksAtOnce = 64
)

// step takes one step of an order: look, decide, write, and only then act.
func (d *Evacuator) step(ctx context.Context, c *campaign, view *record.View, now time.Time) error {
	d.findArrived(ctx, c, view, now)
	seen, can := c.look(view.Each, where(c.order, d.env.Peers.Regions(), d.known), now)
	order := proto.CloneOf(c.order)
	if err := d.remember(ctx, order, now); err != nil {
		return err
	}
	next, decision := evacuation.Step(order, seen, now)
	if !proto.Equal(next, c.order) {
		revision, err := d.store.Swap(ctx, next, c.revision)
		if errors.Is(err, evacuation.ErrConflict) {
			return nil // by the api, for one: the next step sees it
		}
		if err != nil {
			return err
		}
		d.report(c.order, next)
		c.order, c.revision = next, revision
		d.noticed(next, revision)
	}
	if err := d.act(ctx, c, decision, now); err != nil {
		return err
	}
	return d.send(ctx, c, pickOldest(can.due, decision.Again), pickOldest(can.fresh, decision.New), now)
}

// noticed keeps what was written, which the watch tells a moment later.
func (d *Evacuator) noticed(order *siroccov1.Evacuation, revision uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := subject.EvacuationKey(order.GetRegion(), order.GetNode())
	if d.orders[key].revision < revision {
		d.orders[key] = entry{order, revision}
	}
}

func (d *Evacuator) report(before, after *siroccov1.Evacuation) {
	if before.GetState() == after.GetState() && before.GetStage() == after.GetStage() {
		return
	}
	d.log.Info("evacuation", "order", after.GetId(), "region", after.GetRegion(), "node", after.GetNode(), "state", after.GetState().String(),
		"stage", after.GetStage(), "moved", after.GetMoved(), "here", after.GetHere(), "failed", after.GetFailed(), "why", after.GetWhy())
}

// act does what is decided beside moves.
func (d *Evacuator) act(ctx context.Context, c *campaign, decision evacuation.Decision, now time.Time) error {
	switch {
	case c.order.GetNode() == "" && decision.GiveBack:
		d.giveBack(ctx, &c.word, c.order, now)
	case c.order.GetNode() == "":
		d.say(ctx, &c.word, c.order, decision.Share, now)
	case decision.GiveBack:
		c.word.givenBack = true // the api has lifted the cordon
	case decision.Evict:
		return d.evict(ctx, c.order)
	}
	return nil
}

// evict has a node give its sandboxes the eviction notice.
func (d *Evacuator) evict(ctx context.Context, order *siroccov1.Evacuation) error {
	bucket, err := d.env.JS.KeyValue(ctx, subject.BucketNodeOrders)
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", subject.BucketNodeOrders, err)
	}
	key := subject.NodeKey(order.GetRegion(), order.GetNode())
	entry, err := bucket.Get(ctx, key)
	if err != nil {
		return fmt.Errorf("read the orders of %s: %w", order.GetNode(), err)
	}
	node := &siroccov1.Node{}
	if err := proto.Unmarshal(entry.Value(), node); err != nil {
		return fmt.Errorf("decode the orders of %s: %w", order.GetNode(), err)
	}
	if node.GetDraining() || !node.GetCordoned() { // told, or an operator has lifted it
		return nil
	}
	node.Draining = true
	value, err := proto.Marshal(node)
	if err != nil {
		return fmt.Errorf("encode the orders of %s: %w", order.GetNode(), err)
	}
	_, err = bucket.Update(ctx, key, value, entry.Revision())
	return err
}

// pickOldest returns the n sandboxes that were accepted first.
func pickOldest(all []*siroccov1.Sandbox, n int) []*siroccov1.Sandbox {
	if n == 0 {
		return nil
	}
	slices.SortFunc(all, func(x, y *siroccov1.Sandbox) int { return cmp.Compare(x.GetId(), y.GetId()) })
	return all[:n]
}

// send publishes the commands. One that the bus did not take is sent again by the next
// step, under the same key.
func (d *Evacuator) send(ctx context.Context, c *campaign, again, fresh []*siroccov1.Sandbox, now time.Time) error {
	type sent struct {
		try *try
		n   int
		ack jetstream.PubAckFuture
	}
	var all []sent
	for _, sb := range append(again, fresh...) {
		t := c.try(sb.GetId())
		n := max(t.failed, t.sent) + 1
		msg, err := d.command(ctx, c, sb, t, n)
		if err != nil {
			return err
		}
		// As the api names its commands, so that the server stores one once.
		id := msg.Subject + "/" + sb.GetId()
		ack, err := d.env.JS.PublishMsgAsync(msg, jetstream.WithMsgID(id))
		if err != nil {
			return fmt.Errorf("publish %s: %w", msg.Subject, err)
		}
		all = append(all, sent{t, n, ack})
	}
	limit := time.NewTimer(publishTime)
	defer limit.Stop()
	for _, s := range all {
		select {
		case <-s.ack.Ok():
			s.try.sent, s.try.at, s.try.open = s.n, now, true
		case err := <-s.ack.Err():
			return fmt.Errorf("publish %s: %w", s.ack.Msg().Subject, err)
		case <-limit.C:
			return fmt.Errorf("publish %d commands: %w", len(all), context.DeadlineExceeded)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// command makes the command that moves a sandbox, for the n-th time.
func (d *Evacuator) command(ctx context.Context, c *campaign, sb *siroccov1.Sandbox, t *try, n int) (*nats.Msg, error) {
	key := evacuation.Key(c.order.GetId(), sb.GetId(), n)
	region, err := target(c.order, sb, t, d.known, key)
	if err != nil {
		return nil, err
	}
	reason := "region " + c.order.GetRegion() + " is evacuated"
	if node := c.order.GetNode(); node != "" {
		reason = "node " + node + " is drained"
	}
	return bus.NewMsg(ctx, subject.Command(sb.GetTenant(), subject.VerbMigrate, key),
		&siroccov1.MigrateSandboxRequest{Id: sb.GetId(), Region: region, Reason: reason, Epoch: sb.GetPlacement().GetEpoch()})
}

// findArrived looks in other regions for sandboxes that have left for there: their
// records here follow later.
func (d *Evacuator) findArrived(ctx context.Context, c *campaign, view *record.View, now time.Time) {
	var gone []*siroccov1.Sandbox
	for id, t := range c.tries {
		if !t.open || now.Sub(t.at) < lookElsewhere {
			continue
		}
		if sb := view.Lookup(id); sb != nil && lifecycle.Shadow(sb, d.env.Region) && len(gone) < looksAtOnce {
			gone = append(gone, sb)
		}
	}
	found := make([]*siroccov1.Sandbox, len(gone))
	var looking sync.WaitGroup
	ctx, cancel := context.WithTimeout(ctx, publishTime)
	defer cancel()
	for i, sb := range gone {
		store, err := d.abroad.Of(ctx, sb.GetPlacement().GetRegion())
		if err != nil {
			continue
		}
		looking.Go(func() {
			if there, err := store.Get(ctx, sb.GetTenant(), sb.GetId()); err == nil {
				found[i] = there
			}
		})
	}
	looking.Wait()
	for _, sb := range found {
		if sb != nil {
			c.settle(sb, now)
		}
	}
}
