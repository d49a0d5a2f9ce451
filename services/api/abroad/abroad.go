// Package abroad remembers what other regions said of their sandboxes, for when they
// do not answer: an api still says then what it knows, and since when it knows no more.
//
// Each region's bucket of records is followed over its own bus and kept as it is
// written there, encoded (a record in use takes several times as much); and each
// region's bus is asked for a sign of life once a second.
//
// Safety: what is remembered is never a decision, and never written anywhere: the
// region itself answers as soon as it can. Liveness: nothing here waits for a region.
package abroad

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/peer"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"golang.org/x/sync/errgroup"
)

// DefaultLostAfter is after what silence a region counts as dead.
const DefaultLostAfter = 10 * time.Second

// Regions is what is remembered of all other regions. Its methods but Run may be called
// from anywhere. Records that it returns belong to the caller.
type Regions struct {
	all       []*region
	lostAfter time.Duration
	log       *slog.Logger
}

// New makes an empty memory of the regions among peers; Run fills it. lostAfter is after
// what silence a region counts as dead.
func New(peers *peer.Set, lostAfter time.Duration, log *slog.Logger) (*Regions, error) {
	r := &Regions{lostAfter: lostAfter, log: log}
	for _, name := range peers.Regions() {
		p, err := peers.Get(name)
		if err != nil {
			return nil, err
		}
		r.all = append(r.all, &region{peer: p, heard: time.Now(), records: map[string]map[string]kept{}})
	}
	return r, nil
}

// Run follows the regions until ctx ends, and then returns nil.
//
// Concurrency: two goroutines for each region; Run waits for all.
func (r *Regions) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, one := range r.all {
		group.Go(func() error { return one.follow(ctx) })
		group.Go(func() error { one.listen(ctx, r.log); return nil })
	}
	return group.Wait()
}

func (r *Regions) of(name string) *region {
	i := slices.IndexFunc(r.all, func(one *region) bool { return one.peer.Region == name })
	if i < 0 {
		return nil
	}
	return r.all[i]
}

// Silent returns how long a region's bus has not answered; nil while it does, and for a
// region that is none of the others.
func (r *Regions) Silent(name string) *siroccov1.RegionLoss {
	one := r.of(name)
	if one == nil {
		return nil
	}
	now := time.Now()
	since, silent := one.silence(now)
	if !silent {
		return nil
	}
	return loss(name, since, now, r.lostAfter)
}

// Lost is Silent, but holds on after the region is back until what is remembered of it
// is what is there.
func (r *Regions) Lost(name string) *siroccov1.RegionLoss {
	one := r.of(name)
	if one == nil {
		return nil
	}
	now := time.Now()
	since, silent := one.silence(now)
	if !silent && one.fresh() {
		return nil
	}
	return loss(name, since, now, r.lostAfter)
}

// Known says whether all of a region was seen once.
func (r *Regions) Known(name string) bool {
	one := r.of(name)
	return one != nil && one.known()
}

// Find returns a tenant's sandbox by its id, or by the name of one that has not ended,
// and the region that has it; nil if none is remembered.
func (r *Regions) Find(tenant, idOrName string) (found *siroccov1.Sandbox, region string) {
	for _, one := range r.all {
		sb := one.find(tenant, idOrName)
		// Of a sandbox that moves on, the newest place counts.
		if sb != nil && (found == nil || sb.GetPlacement().GetEpoch() > found.GetPlacement().GetEpoch()) {
			found, region = sb, one.peer.Region
		}
	}
	return found, region
}

// Each calls f with every sandbox of a tenant that a region has, in no order.
func (r *Regions) Each(tenant, region string, f func(*siroccov1.Sandbox)) {
	if one := r.of(region); one != nil {
		one.each(tenant, f)
	}
}

// Len returns how many records are remembered.
func (r *Regions) Len() int {
	n := 0
	for _, one := range r.all {
		n += one.len()
	}
	return n
}

// About returns a loss with a sentence about one sandbox. now tells whether its deadline
// has passed meanwhile.
func About(l *siroccov1.RegionLoss, sb *siroccov1.Sandbox, now time.Time) *siroccov1.RegionLoss {
	since := clock(l.GetSince().AsTime())
	out := &siroccov1.RegionLoss{Region: l.GetRegion(), Since: l.GetSince(), Dead: l.GetDead()}
	deadline := sb.GetDesired().GetDeadline()
	switch {
	case lifecycle.Ended(sb.GetState()):
		out.Note = "region " + l.GetRegion() + " has been silent since " + since + "; it had ended before"
	case deadline != nil && !deadline.AsTime().After(now):
		out.Note = "region " + l.GetRegion() + " has been silent since " + since + "; its deadline, " + clock(deadline.AsTime()) + ", has passed, by which its node ends it alone"
	default:
		out.Note = "region " + l.GetRegion() + " has been silent since " + since + "; it may go on there, and is found again when the region is back"
	}
	return out
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05Z") }
