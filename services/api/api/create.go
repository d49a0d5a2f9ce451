package api

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/token"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// create makes a sandbox. Once the record or the command is written nothing is
// lost, whether or not this process or the caller goes away.
//
// Who waits until the sandbox runs needs no record before that: the command
// alone is the promise, and the record's first revision has a node. Else, and when
// a name or a public port must be held, the record comes first; the reaper sees it
// if its command gets lost.
func (a *API) create(ctx context.Context, c caller, req *siroccov1.CreateSandboxRequest) (*siroccov1.CreateSandboxResponse, error) {
	key, err := c.idempotencyKey(req.GetIdempotencyKey())
	if err != nil {
		return nil, err
	}
	spec, err := admission.Normalize(req, *a.cfg.Limits)
	if err != nil {
		return nil, err
	}
	if err := admission.CheckGuards(spec, append(a.env.Peers.Regions(), a.env.Region)); err != nil {
		return nil, err
	}
	id := ""
	if key == "" {
		id, key = record.Mint()
	}
	spec.IdempotencyKey = key
	waits := spec.GetWait() != siroccov1.Wait_WAIT_ACCEPTED
	if waits && id != "" && spec.StartDeadline == nil && !c.until.IsZero() {
		// Who has no key can't ask for it again: after its call nobody wants it.
		spec.StartDeadline = timestamppb.New(c.until)
	}
	if d := spec.GetStartDeadline(); d != nil && !d.AsTime().After(time.Now()) {
		return nil, fault.New(fault.Deadline, "start_deadline has passed: nothing was made")
	}
	if resp, done, err := a.createElsewhere(ctx, c, req, spec); done {
		return resp, err
	}
	if err := a.seats.take(c.tenant, key, useOf(spec), time.Now()); err != nil {
		return nil, err
	}
	accept := a.store.Accept
	if waits && record.HoldsNothing(spec) {
		accept = a.store.Claim
	}
	sb, existed, err := accept(ctx, record.Acceptance{
		Tenant: c.tenant, Key: key, ID: id, Spec: spec, Region: a.env.Region, Front: a.env.Front,
	})
	if err != nil {
		if refusedBeforeWrite(err) {
			a.seats.giveBack(c.tenant, key)
		}
		if elsewhere := new(record.ElsewhereError); errors.As(err, &elsewhere) && !c.forwarded {
			resp, certain, err := a.createIn(ctx, c, elsewhere.Region, key, req)
			if certain {
				err = mayBeThere(elsewhere.Region, err)
			}
			return resp, err
		}
		return nil, err
	}
	expected := a.view.Expect(sb.GetId(), sb, func(sb *siroccov1.Sandbox) bool {
		return lifecycle.Ended(sb.GetState()) || lifecycle.Reached(sb, siroccov1.State_STATE_RUNNING)
	})
	defer expected.Drop()
	// A record that stays accepted may have lost its command.
	if sb.GetState() == siroccov1.State_STATE_ACCEPTED {
		switch _, err := a.command(ctx, c.tenant, subject.VerbCreate, key, sb.GetId(), spec); {
		case err == nil:
		case sb.GetRevision() == 0:
			return nil, err // nothing else knows of it
		default:
			a.log.WarnContext(ctx, "create accepted, its command not published; the reaper will", "tenant", c.tenant, "sandbox", sb.GetId(), "err", err)
		}
	}
	if waits {
		running, err := waitFor(ctx, a.startLimit(spec), expected)
		if err != nil {
			a.show(ctx, sb)
			return nil, err
		}
		sb = running
		if err := refusal(sb); err != nil {
			return nil, err
		}
	}
	t, err := a.tokenFor(sb, 0)
	if err != nil {
		return nil, err
	}
	return &siroccov1.CreateSandboxResponse{Sandbox: sb, Token: t, Existed: existed}, nil
}

// refusedBeforeWrite says whether an error of Accept means that no record was
// written. After any other the bus may have taken it.
func refusedBeforeWrite(err error) bool {
	switch fault.CodeOf(err) {
	case fault.InvalidArgument, fault.AlreadyExists, fault.Quota, fault.FailedPrecondition:
		return true
	}
	return false
}

// show writes the record of a sandbox that nobody waits for any more, unless a
// scheduler has: from then on it can be asked for.
func (a *API) show(ctx context.Context, sb *siroccov1.Sandbox) {
	if sb.GetRevision() != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bus.Patience)
	defer cancel()
	if _, err := a.store.Create(ctx, sb); err != nil && !errors.Is(err, record.ErrConflict) {
		a.log.WarnContext(ctx, "a sandbox that is waited for no more can't be seen yet", "sandbox", sb.GetId(), "err", err)
	}
}

// startLimit is how long a start is waited for.
func (a *API) startLimit(spec *siroccov1.CreateSandboxRequest) time.Duration {
	limit := a.cfg.WaitLimit
	if d := spec.GetStartDeadline(); d != nil {
		// A little more, so that the end by start_deadline is the answer.
		limit = min(limit, time.Until(d.AsTime())+5*time.Second)
	}
	return limit
}

// noCapacityRetry is when a caller may find capacity again, with a new key.
const noCapacityRetry = 2 * time.Second

// refusal is the error of a sandbox that could not be had at all: no capacity,
// no image, or no time left. Every other failure is an answer: the record tells what happened
// to a sandbox that there was.
func refusal(sb *siroccov1.Sandbox) error {
	if sb.GetState() != siroccov1.State_STATE_FAILED {
		return nil
	}
	switch end := sb.GetEnd(); end.GetCause() {
	case siroccov1.Cause_CAUSE_NO_CAPACITY:
		f := fault.New(fault.NoCapacity, "sandbox %s: %s", sb.GetId(), end.GetMessage())
		f.Scope, f.RetryAfter = end.GetLimit(), noCapacityRetry
		return f
	case siroccov1.Cause_CAUSE_DEADLINE:
		return fault.New(fault.Deadline, "sandbox %s: %s", sb.GetId(), end.GetMessage())
	case siroccov1.Cause_CAUSE_IMAGE_ERROR:
		return fault.New(fault.ImageNotFound, "sandbox %s: %s", sb.GetId(), end.GetMessage())
	}
	return nil
}

// waitFor waits for a record, and says in the fault which sandbox it was about
// and where it stood, so that nothing is lost.
func waitFor(ctx context.Context, limit time.Duration, expected *record.Expectation) (*siroccov1.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	newest, err := expected.Wait(ctx)
	switch {
	case err == nil:
		return newest, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fault.New(fault.Deadline, "sandbox %s is %s and has not got there yet; it goes on, ask for it again", newest.GetId(), record.StateName(newest.GetState()))
	}
	return nil, err
}

// command publishes a command about a sandbox and returns once it is durable.
// known says that the same was sent less than two minutes ago: it is then not
// stored a second time.
func (a *API) command(ctx context.Context, tenant, verb, key, sandbox string, m proto.Message) (known bool, err error) {
	msg, err := bus.NewMsg(ctx, subject.Command(tenant, verb, key), m)
	if err != nil {
		return false, err
	}
	// What is asked for goes on when the caller has left.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bus.Patience)
	defer cancel()
	if verb == subject.VerbCreate {
		msg.Header.Set(subject.HeaderSandbox, sandbox)
	}
	id := tenant + "/" + verb + "/" + key + "/" + sandbox
	for first := true; ; first = false {
		try, stop := context.WithTimeout(ctx, 3*time.Second)
		ack, err := a.env.JS.PublishMsg(try, msg, jetstream.WithMsgID(id))
		stop()
		if err == nil {
			return first && ack.Duplicate, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return false, &fault.Fault{Code: fault.Unavailable, Message: "the bus does not take the command", RetryAfter: time.Second, Cause: err}
		}
	}
}

// newKey makes the key of a command that came without one.
func newKey() string { return "auto-" + uuid.NewString() }

// tokenFor makes a token for a sandbox's data services; ttl 0 means the
// default.
func (a *API) tokenFor(sb *siroccov1.Sandbox, ttl time.Duration) (*siroccov1.SandboxToken, error) {
	if ttl == 0 {
		ttl = token.DefaultTTL
	}
	expires := time.Now().Add(ttl).Truncate(time.Second)
	text, err := token.Sign(a.signer, token.Claims{Tenant: sb.GetTenant(), Sandbox: sb.GetId(), Expires: expires})
	if err != nil {
		return nil, err
	}
	return &siroccov1.SandboxToken{Token: text, ExpiresAt: timestamppb.New(expires), DataUrl: a.env.Front.DataURL()}, nil
}
