package api

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

// unknownField finds the name in what protojson says of a field that a message
// does not have.
var unknownField = regexp.MustCompile(`unknown field "([^"]{1,100})"`)

// faultOf returns any error as a fault. What the RPC library found wrong with
// a request, before it reached a handler, is the caller's mistake.
func faultOf(err error) *fault.Fault {
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
	case ce.Code() == connect.CodeUnimplemented:
		return fault.New(fault.NotFound, "there is no such call: %s", ce.Message())
	case ce.Code() == connect.CodeInvalidArgument, ce.Code() == connect.CodeOutOfRange:
		return badRequest(ce.Message())
	}
	return &fault.Fault{Code: fault.Internal, Message: "an internal fault", Cause: err}
}

// badRequest makes the fault of a request that can't be read.
func badRequest(text string) *fault.Fault {
	f := fault.New(fault.InvalidArgument, "%s", strings.ToValidUTF8(text, "�"))
	if m := unknownField.FindStringSubmatch(text); m != nil {
		f.Field = m[1]
	}
	return f
}

// settle makes an error ready to leave the process: an internal one is logged
// under an id, and its text tells nothing.
func (a *API) settle(ctx context.Context, op string, err error) *fault.Fault {
	f := faultOf(err)
	if f.Code != fault.Internal || f.ErrorID != "" {
		return f
	}
	id := strings.ReplaceAll(uuid.NewString(), "-", "")[:16]
	a.log.ErrorContext(ctx, "internal fault", "op", op, "error_id", id, "err", err)
	return &fault.Fault{Code: fault.Internal, Message: "an internal fault", ErrorID: id, Cause: err}
}
