package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/scheduler/placement"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

const (
	// suspicion is how long a node that did not answer is passed over.
	suspicion = 2 * time.Second
	// capacityPoll is how often sandboxes without a node are tried again.
	capacityPoll = 100 * time.Millisecond
	// unhurried is how long a placement and a node's answer take at most where
	// nothing is wrong.
	unhurried = 500 * time.Millisecond
)

// create brings one create command to a node's yes or to a stated failure.
func (s *Scheduler) create(ctx context.Context, cmd command) error {
	began := time.Now()
	spec, err := s.request(cmd)
	if err != nil {
		return err
	}
	claimed := record.Acceptance{
		Tenant: cmd.tenant, Key: cmd.key, ID: cmd.header.Get(subject.HeaderSandbox), At: cmd.at,
		Spec: spec, Region: s.env.Region, Front: s.env.Front,
	}
	var sb *siroccov1.Sandbox
	if claimed.ID != "" && record.HoldsNothing(spec) {
		// The api waits for it, and nobody can ask for it before it is placed: that
		// is its first revision. Who published the command follows its events.
		sb, _, err = s.store.Claim(ctx, claimed)
	} else {
		sb, _, err = s.store.Accept(ctx, claimed)
	}
	if err != nil {
		return err
	}
	err = s.advance(ctx, sb)
	s.latency.Record(ctx, time.Since(began).Seconds())
	return err
}

// request returns what a create command asks for, checked and complete. What a
// service sent has been checked there.
func (s *Scheduler) request(cmd command) (*siroccov1.CreateSandboxRequest, error) {
	req := &siroccov1.CreateSandboxRequest{}
	if cmd.header.Get(subject.HeaderSandbox) != "" {
		return req, bus.Decode(cmd.header, cmd.body, req)
	}
	if err := bus.Decode(cmd.header, cmd.body, req); err != nil {
		return nil, fault.Unreadable(cmd.body, req, err)
	}
	if err := fault.CheckUnknown(req.ProtoReflect()); err != nil {
		return nil, err
	}
	if err := admission.CheckPublishedKey(cmd.key, req.GetIdempotencyKey()); err != nil {
		return nil, err
	}
	if record.IsMinted(cmd.key) {
		return nil, fault.Invalid("idempotency_key", "keys of this form are the platform's")
	}
	spec, err := admission.Normalize(req, s.cfg.Limits)
	if err != nil {
		return nil, err
	}
	if err := admission.CheckGuards(spec, append(s.env.Peers.Regions(), s.env.Region)); err != nil {
		return nil, err
	}
	if why := cmd.header.Get(subject.HeaderOverQuota); why != "" {
		return nil, fault.FromHeader(why)
	}
	return spec, nil
}

// advance takes a sandbox from where its record says it is to a node's yes.
func (s *Scheduler) advance(ctx context.Context, sb *siroccov1.Sandbox) error {
	switch sb.GetState() {
	case siroccov1.State_STATE_ACCEPTED:
	case siroccov1.State_STATE_PLACED, siroccov1.State_STATE_STARTING:
		// A scheduler died between the write and the node's answer, or the node's
		// next write is on its way: asking again for the same epoch is harmless.
		if s.ask(ctx, sb) {
			return nil
		}
	default:
		return nil
	}
	return s.place(ctx, sb)
}

// place finds a node that takes the sandbox. When none does within the
// patience, or before the client stops caring, the sandbox fails with the
// reason; at once if too many of its tenant's wait already. Behind those who wait
// for the like of it, it waits too.
func (s *Scheduler) place(ctx context.Context, sb *siroccov1.Sandbox) error {
	until := time.Now().Add(s.cfg.Patience)
	last, _ := lastStart(sb)
	if last.Before(until) {
		until = last
	}
	template, refusals := record.TemplateKey(sb.GetSpec()), sb.GetPlacement().GetRefusals()
	waiter := newWaiter(sb.GetTenant(), template, placement.Request{ID: sb.GetId(), Need: Need(sb.GetSpec()), Regions: sb.GetSpec().GetRegions()})
	req := waiter.req
	var plan placement.Plan
	ranked := time.Now().Before(until) && !s.room.holds(waiter)
	if ranked {
		plan = s.fleet.rank(s.rules, template, req, time.Now())
	}
	var leave func()
	defer func() {
		if leave != nil {
			leave()
		}
	}()
	for {
		for _, candidate := range plan.Candidates {
			if !time.Now().Before(until) {
				break
			}
			name := candidate.Node
			req.Except = append(req.Except, name)
			region, address := s.fleet.address(name)
			if address == "" {
				continue
			}
			began := time.Now()
			s.fleet.assume(name, sb.GetId(), template, req.Need, began)
			placed, err := s.store.Update(ctx, sb.GetTenant(), sb.GetId(), sb, lifecycle.Place{
				Region: region, Node: name, Address: address, Refusals: refusals,
				// A second delivery of the command may be under way beside this one.
				Epoch: sb.GetPlacement().GetEpoch() + 1,
			})
			if err != nil {
				s.fleet.unassume(name, sb.GetId())
				return fmt.Errorf("place sandbox %s: %w", sb.GetId(), err)
			}
			if placed.GetPlacement().GetNode() != name || placed.GetState() != siroccov1.State_STATE_PLACED {
				// Somebody else moved it on: it was stopped, or placed elsewhere.
				s.fleet.unassume(name, sb.GetId())
				if sb.GetRevision() == 0 {
					return s.advance(ctx, placed) // it had been written by a delivery before
				}
				return nil
			}
			sb = placed
			if s.ask(ctx, sb) {
				s.explain(ctx, sb, plan)
				return nil
			}
			refusals++
			// Patience is for capacity: a bus that is away, or a node that says
			// nothing, does not use it up.
			if took := time.Since(began); took > unhurried {
				if until = until.Add(took); last.Before(until) {
					until = last
				}
			}
		}
		if !time.Now().Before(until) {
			return s.giveUp(ctx, sb, plan, refusals)
		}
		if len(plan.Candidates) > 0 {
			plan = s.fleet.rank(s.rules, template, req, time.Now()) // others may take it
			continue
		}
		req.Except = nil
		if leave == nil {
			var ok bool
			if leave, ok = s.crowd.enter(sb.GetTenant()); !ok {
				if !ranked {
					plan = s.room.try(waiter) // for the reason
				}
				return s.giveUp(ctx, sb, plan, refusals)
			}
		}
		if sb.GetRevision() == 0 {
			// It waits: from now on it can be seen.
			written, err := s.store.Create(ctx, sb)
			if errors.Is(err, record.ErrConflict) {
				if written, err = s.store.Get(ctx, sb.GetTenant(), sb.GetId()); err == nil {
					return s.advance(ctx, written)
				}
			}
			if err != nil {
				return fmt.Errorf("accept sandbox %s: %w", sb.GetId(), err)
			}
			sb = written
		}
		// Who waits leaves its slot to others.
		<-s.slots
		var err error
		plan, err = s.room.wait(ctx, waiter, until)
		s.slots <- struct{}{}
		if err != nil {
			return err
		}
	}
}

// lastStart is until when a sandbox may be started: until its client stops
// caring, or its lifetime is over. cause is what it ends of after that.
func lastStart(sb *siroccov1.Sandbox) (last time.Time, cause siroccov1.Cause) {
	last = sb.GetDesired().GetDeadline().AsTime()
	if d := sb.GetSpec().GetStartDeadline(); d != nil && d.AsTime().Before(last) {
		return d.AsTime(), siroccov1.Cause_CAUSE_DEADLINE
	}
	return last, siroccov1.Cause_CAUSE_MAX_LIFETIME
}

// explain tells the trace and the log why a sandbox is where it is.
func (s *Scheduler) explain(ctx context.Context, sb *siroccov1.Sandbox, plan placement.Plan) {
	span, debug := trace.SpanFromContext(ctx), s.log.Enabled(ctx, slog.LevelDebug)
	if !span.IsRecording() && !debug {
		return
	}
	why := plan.Explain()
	span.SetAttributes(attribute.String("sirocco.placement", why))
	if debug {
		s.log.DebugContext(ctx, "sandbox placed", "sandbox", sb.GetId(), "node", sb.GetPlacement().GetNode(), "why", why)
	}
}

// ask asks the node on which the record is placed, and says whether it took
// the sandbox.
func (s *Scheduler) ask(ctx context.Context, sb *siroccov1.Sandbox) bool {
	name := sb.GetPlacement().GetNode()
	s.tally.asks.Add(1)
	refusal, err := s.nodes.Place(ctx, sb)
	if err == nil {
		s.tally.answers.Add(1)
	}
	answer := "yes"
	switch {
	case err != nil:
		answer = "none"
		s.fleet.suspect(name, time.Now().Add(suspicion))
		s.log.WarnContext(ctx, "node did not answer", "node", name, "sandbox", sb.GetId(), "err", err)
	case refusal != nil:
		answer = refusal.GetReason()
		s.log.DebugContext(ctx, "node refused", "node", name, "sandbox", sb.GetId(), "reason", refusal.GetMessage())
	}
	s.placements.Add(ctx, 1, metric.WithAttributes(attribute.String("answer", answer)))
	if answer != "yes" {
		s.fleet.unassume(name, sb.GetId())
	}
	return answer == "yes"
}

// giveUp ends a sandbox that no node has taken.
func (s *Scheduler) giveUp(ctx context.Context, sb *siroccov1.Sandbox, plan placement.Plan, refusals uint32) error {
	if len(plan.Candidates) > 0 {
		s.fleet.unassume(plan.Candidates[0].Node, sb.GetId())
	}
	end := &siroccov1.End{}
	switch last, cause := lastStart(sb); {
	case time.Now().Before(last):
		end.Cause, end.Limit, end.Message = siroccov1.Cause_CAUSE_NO_CAPACITY, plan.Scope(), plan.Explain()
		if len(plan.Candidates) > 0 || plan.Refused(placement.Refused) > 0 {
			end.Message = fmt.Sprintf("every node that seemed to fit refused (%d refusals)", refusals)
		}
		end.Message += "; retry after 2 s"
	case cause == siroccov1.Cause_CAUSE_DEADLINE:
		end.Cause, end.Limit = cause, "start_deadline="+last.UTC().Format(time.RFC3339Nano)
		end.Message = "its start_deadline passed before a node had taken it: nothing was started"
	default:
		end.Cause, end.Message = cause, "its max_lifetime was over before a node could run it"
	}
	_, err := s.store.Update(ctx, sb.GetTenant(), sb.GetId(), sb, lifecycle.GiveUp{Epoch: sb.GetPlacement().GetEpoch(), End: end})
	return err
}

// Need is what a sandbox takes from a node: its requests, not its limits.
func Need(spec *siroccov1.CreateSandboxRequest) placement.Amount {
	r := spec.GetResources()
	return placement.Amount{
		CPUMillis: int64(r.GetCpuRequestMillis()), MemoryBytes: r.GetMemoryRequestBytes(), DiskBytes: 0, Sandboxes: 1,
	}
}
