package reaper

import (
	"context"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// shadowTimeout bounds the look at the records of one other region.
const shadowTimeout = 5 * time.Second

// shadows are the records of sandboxes that have gone to other regions: they follow the
// records there, so that what still comes here finds them, and end with them. Of all
// that a reaper does, only this needs another region; while that is away they stay.
type shadows struct {
	// seen is the revision that a shadow shows, in its region's bucket.
	seen map[string]uint64
	// since is up to where a region's bucket was looked at.
	since map[string]uint64
}

func newShadows() *shadows { return &shadows{map[string]uint64{}, map[string]uint64{}} }

// followShadows looks at all shadows once.
func (r *Reaper) followShadows(ctx context.Context) {
	gone := map[string][]*siroccov1.Sandbox{}
	r.view.Each(func(sb *siroccov1.Sandbox) bool {
		if lifecycle.Shadow(sb, r.env.Region) {
			region := sb.GetPlacement().GetRegion()
			gone[region] = append(gone[region], sb)
		}
		return true
	})
	seen := make(map[string]uint64, len(r.shadows.seen))
	for _, all := range gone {
		for _, sb := range all {
			if revision, ok := r.shadows.seen[sb.GetId()]; ok {
				seen[sb.GetId()] = revision
			}
		}
	}
	r.shadows.seen = seen // without those that are shadows no more
	for region, all := range gone {
		if err := r.followInto(ctx, region, all); err != nil {
			r.log.Debug("what went to another region can't be followed now", "peer", region, "err", err)
		}
	}
}

// followInto brings the shadows of what went to one region up to date.
func (r *Reaper) followInto(ctx context.Context, region string, all []*siroccov1.Sandbox) error {
	ctx, cancel := context.WithTimeout(ctx, shadowTimeout)
	defer cancel()
	there, err := r.abroad.Of(ctx, region)
	if err != nil {
		r.shadows.since[region] = 0 // what was deleted meanwhile may be forgotten there: compare all
		return err
	}
	var known, fresh []record.Known
	byID := make(map[string]*siroccov1.Sandbox, len(all))
	for _, sb := range all {
		byID[sb.GetId()] = sb
		if revision, ok := r.shadows.seen[sb.GetId()]; ok {
			known = append(known, record.Known{Tenant: sb.GetTenant(), ID: sb.GetId(), Revision: revision})
		} else {
			fresh = append(fresh, record.Known{Tenant: sb.GetTenant(), ID: sb.GetId()})
		}
	}
	// Only new ones are compared whenever they were written: while a region is being
	// evacuated there are some each time, beside thousands that are known.
	changed, upTo, err := there.Overtaken(ctx, known, r.shadows.since[region])
	if err != nil {
		return err
	}
	news, newsUpTo, err := there.Overtaken(ctx, fresh, 0)
	if err != nil {
		return err
	}
	if len(known) == 0 {
		upTo = newsUpTo
	}
	r.shadows.since[region] = upTo
	for _, k := range append(changed, news...) {
		if err := r.followOne(ctx, there, region, byID[k.ID]); err != nil {
			r.shadows.since[region] = 0
			return err
		}
	}
	return nil
}

func (r *Reaper) followOne(ctx context.Context, there *record.Store, region string, shadow *siroccov1.Sandbox) error {
	now, err := there.Get(ctx, shadow.GetTenant(), shadow.GetId())
	var step lifecycle.Step = lifecycle.Follow{Region: r.env.Region, Record: now}
	switch {
	case fault.CodeOf(err) == fault.NotFound:
		// Its record was there before it could depart: it has ended and was forgotten.
		step = lifecycle.Finish{Epoch: shadow.GetPlacement().GetEpoch(), End: &siroccov1.End{
			Cause: siroccov1.Cause_CAUSE_NODE_LOST, Message: "it had moved to region " + region + ", which knows it no more",
		}}
	case err != nil:
		return err
	}
	if _, err := r.store.Update(ctx, shadow.GetTenant(), shadow.GetId(), nil, lifecycle.OfShadow{Region: r.env.Region, Step: step}); err != nil {
		return err
	}
	if now != nil {
		r.shadows.seen[shadow.GetId()] = now.GetRevision()
	}
	return nil
}
