package api

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// changeKey is the key of a command: the caller's, or a fresh one.
func (c caller) changeKey() (string, error) {
	key, err := c.idempotencyKey("")
	if err == nil && key == "" {
		key = newKey()
	}
	return key, err
}

// effect is what a command about a sandbox is to bring about.
type effect struct {
	// done says whether a record shows it.
	done func(*siroccov1.Sandbox) bool
	// open: nothing is to be waited for once the sandbox ends.
	open bool
	// once: a record does not show whether a command that was sent before has
	// had its effect, so a resend is not waited for.
	once bool
}

// changeAndAwait publishes a command about a sandbox and waits for its effect.
// It looks for that from before the command goes, at every revision: of two
// commands at once, the second may undo what the first has done. When a scheduler
// refuses the command, what it says is the error.
func (a *API) changeAndAwait(ctx context.Context, c caller, verb string, sb *siroccov1.Sandbox, m proto.Message, want effect) (*siroccov1.Sandbox, error) {
	key, err := c.changeKey()
	if err != nil {
		return nil, err
	}
	return a.changeAs(ctx, c, verb, key, sb, m, want)
}

// changeAs is changeAndAwait under a key of changeKey.
func (a *API) changeAs(ctx context.Context, c caller, verb, key string, sb *siroccov1.Sandbox, m proto.Message, want effect) (*siroccov1.Sandbox, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Over the connection on which the command goes, so that the server knows of
	// the listener first.
	refusals, err := a.env.NC.Subscribe(subject.CommandEvent(c.tenant, key), func(msg *nats.Msg) {
		if err := refusalOf(msg, verb); err != nil {
			cancel(err)
		}
	})
	if err != nil {
		return nil, away("listen for a refusal", err)
	}
	defer func() { _ = refusals.Unsubscribe() }()
	expected := a.view.Expect(sb.GetId(), sb, func(sb *siroccov1.Sandbox) bool {
		return want.done(sb) || want.open && closing(sb)
	})
	defer expected.Drop()
	known, err := a.command(ctx, c.tenant, verb, key, sb.GetId(), m)
	if err != nil {
		return nil, err
	}
	if known && want.once {
		return sb, nil
	}
	out, err := waitFor(ctx, a.cfg.WaitLimit, expected)
	var refused *fault.Fault
	switch {
	case err != nil && errors.As(context.Cause(ctx), &refused):
		return nil, refused
	case err == nil && !want.done(out):
		return nil, ended(out)
	}
	return out, err
}

// refusalOf reads the event about a refused command; nil if it is about
// another.
func refusalOf(msg *nats.Msg, verb string) error {
	refused := &siroccov1.RejectedCommand{}
	if bus.Decode(msg.Header, msg.Data, refused) != nil || refused.GetVerb() != verb {
		return nil
	}
	return &fault.Fault{
		Code: fault.Code(refused.GetCode()), Message: refused.GetMessage(), Field: refused.GetField(),
		Scope: refused.GetScope(), RetryAfter: refused.GetRetryAfter().AsDuration(),
	}
}
