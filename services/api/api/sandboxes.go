package api

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/token"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// find returns a tenant's record by id, or by the name of one that has not
// ended. Another tenant's is not found.
func (a *API) find(ctx context.Context, c caller, field, id string) (*siroccov1.Sandbox, error) {
	if id == "" {
		return nil, fault.Invalid(field, "name a sandbox by its id or its name")
	}
	if sandboxid.Valid(id) {
		sb, err := a.view.Get(ctx, c.tenant, id)
		if err != nil {
			return nil, err
		}
		return a.here(sb)
	}
	held, err := a.store.ByName(ctx, c.tenant, id)
	if err != nil {
		return nil, err
	}
	sb, err := a.view.Get(ctx, c.tenant, held)
	if err == nil && lifecycle.Ended(sb.GetState()) || fault.CodeOf(err) == fault.NotFound {
		return nil, fault.New(fault.NotFound, "no sandbox %s", id)
	}
	if err != nil {
		return nil, err
	}
	return a.here(sb)
}

// findOpen is find for what asks something of a sandbox that has not ended.
func (a *API) findOpen(ctx context.Context, c caller, field, id string) (*siroccov1.Sandbox, error) {
	sb, err := a.find(ctx, c, field, id)
	if err != nil {
		return nil, err
	}
	if closing(sb) {
		return nil, ended(sb)
	}
	return sb, nil
}

// closing says whether a sandbox has ended or is about to.
func closing(sb *siroccov1.Sandbox) bool {
	return lifecycle.Ended(sb.GetState()) || sb.GetDesired().GetStop()
}

func ended(sb *siroccov1.Sandbox) error {
	return fault.New(fault.FailedPrecondition, "sandbox %s has ended or is about to", sb.GetId())
}

func (a *API) get(ctx context.Context, c caller, req *siroccov1.GetSandboxRequest) (*siroccov1.Sandbox, error) {
	return a.find(ctx, c, "id", req.GetId())
}

// Sizes of a page.
const (
	defaultPage = 100
	maxPage     = 1000
)

// list pages by id: ids sort by time, so a page stays what it was whatever is
// created meanwhile.
func (a *API) list(_ context.Context, c caller, req *siroccov1.ListSandboxesRequest) (*siroccov1.ListSandboxesResponse, error) {
	match, err := filter(c.tenant, req)
	if err != nil {
		return nil, err
	}
	size := pageSize(req)
	if size < 0 || size > maxPage {
		return nil, fault.Invalid("page_size", "%d is out of range: 1 to %d", size, maxPage)
	}
	var found []*siroccov1.Sandbox
	a.view.Each(func(sb *siroccov1.Sandbox) bool {
		if match(sb) && !lifecycle.Shadow(sb, a.env.Region) {
			found = append(found, sb)
		}
		return true
	})
	slices.SortFunc(found, func(x, y *siroccov1.Sandbox) int { return strings.Compare(y.GetId(), x.GetId()) })
	resp := &siroccov1.ListSandboxesResponse{Sandboxes: found}
	if len(found) > size {
		resp.Sandboxes, resp.NextPageToken = found[:size], found[size-1].GetId()
	}
	return resp, nil
}

func pageSize(req *siroccov1.ListSandboxesRequest) int {
	return cmp.Or(int(req.GetPageSize()), defaultPage)
}

// filter makes the test of a list request.
func filter(tenant string, req *siroccov1.ListSandboxesRequest) (func(*siroccov1.Sandbox) bool, error) {
	states := map[siroccov1.State]bool{}
	for _, s := range req.GetStates() {
		if _, known := siroccov1.State_name[int32(s)]; !known || s == siroccov1.State_STATE_UNSPECIFIED {
			return nil, fault.Invalid("states", "%d is not a state", s)
		}
		states[s] = true
	}
	tags := map[string]string{}
	for _, t := range req.GetTags() {
		k, v, ok := strings.Cut(t, "=")
		if !ok || k == "" {
			return nil, fault.Invalid("tags", "want key=value")
		}
		if have, twice := tags[k]; twice && have != v {
			return func(*siroccov1.Sandbox) bool { return false }, nil
		}
		tags[k] = v
	}
	before := req.GetPageToken()
	if before != "" && !sandboxid.Valid(before) {
		return nil, fault.Invalid("page_token", "it is not from an answer before")
	}
	return func(sb *siroccov1.Sandbox) bool {
		if sb.GetTenant() != tenant || before != "" && sb.GetId() >= before {
			return false
		}
		if len(states) > 0 && !states[sb.GetState()] {
			return false
		}
		if len(states) == 0 && !req.GetAll() && lifecycle.Ended(sb.GetState()) {
			return false
		}
		if req.GetName() != "" && sb.GetSpec().GetName() != req.GetName() {
			return false
		}
		for k, v := range tags {
			if have, ok := sb.GetSpec().GetTags()[k]; !ok || have != v {
				return false
			}
		}
		return true
	}, nil
}

func (a *API) terminate(ctx context.Context, c caller, req *siroccov1.TerminateSandboxRequest) (*siroccov1.Sandbox, error) {
	if err := admission.CheckReason("reason", req.GetReason()); err != nil {
		return nil, err
	}
	sb, err := a.find(ctx, c, "id", req.GetId())
	if err != nil {
		return nil, err
	}
	if lifecycle.Ended(sb.GetState()) {
		return sb, nil
	}
	reason := req.GetReason()
	if reason == "" {
		reason = "terminated by its user"
	}
	expected := a.view.Expect(sb.GetId(), sb, func(sb *siroccov1.Sandbox) bool { return lifecycle.Ended(sb.GetState()) })
	defer expected.Drop()
	if sb.GetState() == siroccov1.State_STATE_RUNNING && !req.GetNoWait() {
		// A node that knows has it in its journal. What is wanted goes into the record only
		// if that takes long, so that of many that end at once each is written once.
		if known, err := a.hosts.Stop(context.WithoutCancel(ctx), sb, reason); err == nil && known {
			if ended, err := waitFor(ctx, stopPatience, expected); err == nil {
				return ended, nil
			}
		}
	}
	if sb, err = a.stop(ctx, sb, reason); err != nil || req.GetNoWait() || lifecycle.Ended(sb.GetState()) {
		return sb, err
	}
	return waitFor(ctx, a.cfg.WaitLimit, expected)
}

// stopPatience is how long a node that has said that it will may take to end a sandbox before
// the record says that it is to: a node has ended hundreds meanwhile.
const stopPatience = 10 * time.Second

// stop writes that a sandbox is to end and tells its node. A scheduler does the
// same for a command that was published; there is nothing to decide.
func (a *API) stop(ctx context.Context, sb *siroccov1.Sandbox, reason string) (*siroccov1.Sandbox, error) {
	// What is asked for goes on when the caller has left.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bus.Patience)
	defer cancel()
	stop := lifecycle.Stop{Cause: siroccov1.Cause_CAUSE_USER, Reason: reason}
	sb, err := a.store.Update(ctx, sb.GetTenant(), sb.GetId(), sb, lifecycle.Here{Region: a.env.Region, Step: stop})
	if errors.Is(err, lifecycle.ErrElsewhere) {
		return a.here(sb) // it went between find and the write
	}
	if err != nil {
		return nil, err
	}
	if err := a.hosts.Tell(ctx, sb); err != nil {
		a.log.WarnContext(ctx, "a node was not told of a stop; it finds out by itself", "sandbox", sb.GetId(), "err", err)
	}
	return sb, nil
}

func (a *API) extend(ctx context.Context, c caller, req *siroccov1.ExtendSandboxRequest) (*siroccov1.Sandbox, error) {
	by := req.GetBy().AsDuration()
	if !req.GetBy().IsValid() || by <= 0 {
		return nil, fault.Invalid("by", "want how long from now it may live, more than zero")
	}
	sb, err := a.findOpen(ctx, c, "id", req.GetId())
	if err != nil {
		return nil, err
	}
	accepted := lifecycle.Entered(sb, siroccov1.State_STATE_ACCEPTED)
	if last := accepted.Add(a.cfg.Limits.MaxLifetime); time.Now().Add(by).After(last) {
		return nil, fault.Invalid("by", "a sandbox lives at most %v from its acceptance: until %s", a.cfg.Limits.MaxLifetime, last.UTC().Format(time.RFC3339))
	}
	before := sb.GetDesired().GetDeadline().AsTime()
	moved := func(sb *siroccov1.Sandbox) bool { return !sb.GetDesired().GetDeadline().AsTime().Equal(before) }
	return a.changeAndAwait(ctx, c, subject.VerbExtend, sb, &siroccov1.ExtendSandboxRequest{Id: sb.GetId(), By: req.GetBy()}, effect{done: moved, open: true, once: true})
}

func (a *API) setTags(ctx context.Context, c caller, req *siroccov1.SetTagsRequest) (*siroccov1.Sandbox, error) {
	if err := admission.CheckTags("tags", req.GetTags()); err != nil {
		return nil, err
	}
	sb, err := a.find(ctx, c, "id", req.GetId())
	if err != nil {
		return nil, err
	}
	same := func(sb *siroccov1.Sandbox) bool { return maps.Equal(sb.GetSpec().GetTags(), req.GetTags()) }
	if same(sb) {
		return sb, nil
	}
	return a.changeAndAwait(ctx, c, subject.VerbSetTags, sb, &siroccov1.SetTagsRequest{Id: sb.GetId(), Tags: req.GetTags()}, effect{done: same})
}

func (a *API) createToken(ctx context.Context, c caller, req *siroccov1.CreateTokenRequest) (*siroccov1.SandboxToken, error) {
	ttl := req.GetTtl().AsDuration()
	if req.GetTtl() != nil && (!req.GetTtl().IsValid() || ttl < 0 || ttl > token.MaxTTL) {
		return nil, fault.Invalid("ttl", "%v is out of range: up to %v", ttl, token.MaxTTL)
	}
	sb, err := a.find(ctx, c, "id", req.GetId())
	if err != nil {
		return nil, err
	}
	// One that has ended still has its command's last output.
	return a.tokenFor(sb, ttl)
}
