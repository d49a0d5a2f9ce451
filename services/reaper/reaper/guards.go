package reaper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guard"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// settleGuards makes sure, before a sandbox is given up whose node can't say what has
// become of it, that no other region brings it up, or has done so: then the record
// follows, and elsewhere is true. While a region that may be its guard can't be asked, and
// the sandbox's time is not over, there is an error, and nothing is decided.
func (r *Reaper) settleGuards(ctx context.Context, sb *siroccov1.Sandbox) (elsewhere bool, err error) {
	if !admission.Restored(sb.GetSpec()) || !lifecycle.Reached(sb, siroccov1.State_STATE_RUNNING) || time.Now().After(sb.GetDesired().GetDeadline().AsTime()) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, shadowTimeout)
	defer cancel()
	for _, region := range r.env.Peers.Regions() {
		elsewhere, err := r.settleGuard(ctx, sb, region)
		if elsewhere || err != nil {
			return elsewhere, err
		}
	}
	return false, nil
}

// settleGuard is settleGuards with one region.
func (r *Reaper) settleGuard(ctx context.Context, sb *siroccov1.Sandbox, region string) (elsewhere bool, err error) {
	p, err := r.env.Peers.Get(region)
	if err != nil {
		return false, err
	}
	if !p.Alive() {
		return false, fault.New(fault.Unavailable, "region %s, which may have taken it over, can't be reached", region)
	}
	guards, err := guard.Open(ctx, p.JS)
	if err != nil {
		return false, err
	}
	epoch := sb.GetPlacement().GetEpoch()
	e, err := guards.Get(ctx, sb.GetTenant(), sb.GetId())
	if err != nil || e == nil || e.Region != r.env.Region || e.Epoch != epoch {
		return false, err
	}
	if err := guards.Release(ctx, sb.GetTenant(), sb.GetId(), epoch, e.Term); !errors.Is(err, guard.ErrTaken) {
		return false, err
	}
	there, err := r.abroad.Of(ctx, region)
	if err != nil {
		return false, err
	}
	now, err := there.Get(ctx, sb.GetTenant(), sb.GetId())
	if err == nil && now.GetPlacement().GetEpoch() <= epoch {
		err = errors.New("its new record is not written yet")
	}
	if err != nil {
		return false, fmt.Errorf("follow it to region %s: %w", region, err)
	}
	_, err = r.store.Update(ctx, sb.GetTenant(), sb.GetId(), nil, lifecycle.Follow{Region: r.env.Region, Record: now})
	return err == nil, err
}
