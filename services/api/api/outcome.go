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

// change publishes a command about a sandbox, under the caller's idempotency
// key or a fresh one.
func (a *API) change(ctx context.Context, c caller, verb, sandbox string, m proto.Message) error {
	key, err := c.changeKey()
	if err != nil {
		return err
	}
	_, err = a.command(ctx, c.tenant, verb, key, sandbox, m)
	return err
}

// changeKey is the key of a command: the caller's, or a fresh one.
func (c caller) changeKey() (string, error) {
	key, err := c.idempotencyKey("")
	if err == nil && key == "" {
		key = newKey()
	}
	return key, err
}

// changeAndAwait publishes a command about a sandbox and waits for its effect
// as await says, whose known tells that it has been sent before under the same
// key. When a scheduler refuses the command, what it says is the error.
func (a *API) changeAndAwait(ctx context.Context, c caller, verb string, sb *siroccov1.Sandbox, m proto.Message, await func(ctx context.Context, known bool) (*siroccov1.Sandbox, error)) (*siroccov1.Sandbox, error) {
	key, err := c.changeKey()
	if err != nil {
		return nil, err
	}
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
	known, err := a.command(ctx, c.tenant, verb, key, sb.GetId(), m)
	if err != nil {
		return nil, err
	}
	out, err := await(ctx, known)
	var refused *fault.Fault
	if err != nil && errors.As(context.Cause(ctx), &refused) {
		return nil, refused
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
	return &fault.Fault{Code: fault.Code(refused.GetCode()), Message: refused.GetMessage(), Field: refused.GetField()}
}
