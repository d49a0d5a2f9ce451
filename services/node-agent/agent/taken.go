package agent

import (
	"context"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// How a guarded sandbox ends on this node: nothing is written of one that may have been
// taken over, before its guard has said whether it was.

// ending settles with the guard how a sandbox ends of which nothing is here any more: it
// returns the end that is to be written, nil if it lives on elsewhere. While that is not
// known it asks on, until the sandbox's time is over. The error is that of ctx.
func (m *machine) ending(ctx context.Context, end *siroccov1.End) (*siroccov1.End, error) {
	for m.watched.Load() != nil && ctx.Err() == nil {
		if !m.taken.Load() {
			if end != nil && !m.fenced() {
				return end, nil // it was this node's to end
			}
			if m.unguard(ctx) == nil {
				return end, nil
			}
		}
		if m.taken.Load() && m.shadow(ctx) == nil {
			m.bind(guardNote{}, 0)
			return nil, nil
		}
		if time.Now().After(m.current().GetDesired().GetDeadline().AsTime()) {
			return end, nil
		}
		select {
		case <-time.After(askPause):
		case <-ctx.Done():
		}
	}
	return end, ctx.Err()
}

// forsake ends the term of a sandbox whose end is written. What it can't end before the
// sandbox's time is over ends then. The error is that of ctx.
func (m *machine) forsake(ctx context.Context) error {
	for m.watched.Load() != nil && ctx.Err() == nil && time.Now().Before(m.current().GetDesired().GetDeadline().AsTime()) {
		if m.unguard(ctx) == nil || m.taken.Load() && m.shadow(ctx) == nil {
			break
		}
		select {
		case <-time.After(askPause):
		case <-ctx.Done():
		}
	}
	m.bind(guardNote{}, 0)
	return ctx.Err()
}

// shadow makes this region's record follow that of the region which has taken the sandbox
// over, and has an end that was asked for here carried out there.
func (m *machine) shadow(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	w := m.watched.Load()
	records, err := m.agent.recordsOf(ctx, w.region)
	if err != nil {
		return err
	}
	there, err := records.Get(ctx, m.tenant, m.id)
	if err != nil {
		return err
	}
	if there.GetPlacement().GetEpoch() <= m.epoch {
		return fault.New(fault.Unavailable, "it has not landed there yet")
	}
	here, err := m.agent.store.Get(ctx, m.tenant, m.id)
	if err != nil && fault.CodeOf(err) != fault.NotFound {
		return err
	}
	if d := here.GetDesired(); d.GetStop() {
		there, err = records.Update(ctx, m.tenant, m.id, there, lifecycle.Stop{Cause: d.GetStopCause(), Reason: d.GetStopReason()})
		if err != nil {
			return err
		}
	}
	if here != nil {
		_, err = m.agent.store.Update(ctx, m.tenant, m.id, here, lifecycle.Follow{Region: m.agent.env.Region, Record: there})
	}
	if err == nil {
		m.log.InfoContext(ctx, "sandbox was taken over", "region", w.region, "newer", there.GetPlacement().GetEpoch())
	}
	return err
}
