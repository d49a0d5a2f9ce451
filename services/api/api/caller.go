package api

import (
	"context"
	"time"

	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/record"
)

// caller is who asks, whatever the way in.
type caller struct {
	tenant   string
	operator bool
	// key is the idempotency key beside the request (an HTTP header); empty for
	// none.
	key string
	// forwarded: another region passed the request on.
	forwarded bool
	// until is the deadline of the call; zero for none.
	until time.Time
}

type callerKey struct{}

func withCaller(ctx context.Context, c caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf returns who asks. Without one, the request never passed the door:
// it is refused.
func callerOf(ctx context.Context) (caller, error) {
	c, ok := ctx.Value(callerKey{}).(caller)
	if !ok || c.tenant == "" {
		return caller{}, fault.New(fault.Unauthenticated, "an API key is needed: Authorization: Bearer %s…", apikey.Prefix)
	}
	return c, nil
}

func (c caller) mustOperate() error {
	if !c.operator {
		return fault.New(fault.PermissionDenied, "only operators may do this")
	}
	return nil
}

// idempotencyKey joins the key in a request with the one beside it.
func (c caller) idempotencyKey(inBody string) (string, error) {
	key := inBody
	switch {
	case key == "":
		key = c.key
	case c.key != "" && c.key != key:
		return "", fault.Invalid("idempotency_key", "the header Idempotency-Key and the body name different keys")
	}
	if record.IsMinted(key) {
		return "", fault.Invalid("idempotency_key", "keys of this form are the platform's: choose another")
	}
	return key, admission.CheckKey(key)
}
