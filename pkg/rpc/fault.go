package rpc

import (
	"context"
	"errors"
	"io"
	"regexp"
	"strings"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/sirocco-run/sirocco/pkg/fault"
)

var (
	// parameter finds the name in what the transcoder says of a parameter: of its
	// value, and of one that there is not.
	parameter = regexp.MustCompile(`^(?:invalid parameter|(?:unknown field )?in field path) "([^"\\]{1,100})"`)
	// unreadable is a fault of fault.Unreadable after the RPC library has made text
	// of it: what it can't read it tells to no interceptor.
	unreadable = regexp.MustCompile(`(?s)^unmarshal message: invalid_argument(?: \((.{1,400}?)\))?: (.*)$`)
)

// FaultOf returns any error as a fault. What the RPC library found wrong with
// a request, before it reached a handler, is the caller's mistake.
func FaultOf(err error) *fault.Fault {
	var f *fault.Fault
	var ce *connect.Error
	if errors.As(err, &f) || !errors.As(err, &ce) {
		return fault.From(err)
	}
	switch back := fault.FromConnect(err); {
	case errors.As(back, &f) && len(ce.Details()) > 0:
		return f
	case ce.Code() == connect.CodeCanceled:
		return &fault.Fault{Code: fault.Unavailable, Message: "the request was cancelled", Cause: err}
	case ce.Code() == connect.CodeDeadlineExceeded:
		return fault.From(context.DeadlineExceeded)
	case ce.Code() == connect.CodeResourceExhausted:
		return fault.Invalid("", "the request is too large: %s", ce.Message())
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fault.New(fault.InvalidArgument, "the request ended early")
	case strings.Contains(ce.Message(), "zero messages"):
		return fault.New(fault.InvalidArgument, "the request has no body")
	case strings.Contains(ce.Message(), "multiple messages"):
		return fault.New(fault.InvalidArgument, "the request has more than one message")
	case ce.Code() == connect.CodeUnimplemented:
		return fault.New(fault.NotFound, "there is no such call: %s", ce.Message())
	case ce.Code() == connect.CodeInvalidArgument, ce.Code() == connect.CodeOutOfRange:
		return BadRequest(ce.Message())
	}
	return &fault.Fault{Code: fault.Internal, Message: "an internal fault", Cause: err}
}

// BadRequest makes the fault of a request that can't be read, out of what an RPC
// library says of it.
func BadRequest(text string) *fault.Fault {
	text = strings.ToValidUTF8(text, "�")
	if m := unreadable.FindStringSubmatch(text); m != nil {
		return fault.Invalid(m[1], "%s", m[2])
	}
	f := fault.New(fault.InvalidArgument, "%s", text)
	if m := parameter.FindStringSubmatch(text); m != nil {
		f.Field = m[1]
	}
	return f
}

// endedEarly says whether the RPC library failed to read the envelope of a
// message whole. It calls that its own fault, and sends it past the interceptors.
func endedEarly(text string) bool {
	return strings.HasPrefix(text, "protocol error: ") || strings.HasPrefix(text, "read enveloped message: ")
}

// Settle makes an error ready to leave the process: an internal one is logged
// under an id, and its text tells nothing.
func (c *Contract) Settle(ctx context.Context, op string, err error) *fault.Fault {
	f := FaultOf(err)
	if f.Code != fault.Internal || f.ErrorID != "" {
		return f
	}
	id := strings.ReplaceAll(uuid.NewString(), "-", "")[:16]
	c.cfg.Log.ErrorContext(ctx, "internal fault", "op", op, "error_id", id, "err", err)
	return &fault.Fault{Code: fault.Internal, Message: "an internal fault", ErrorID: id, Cause: err}
}
