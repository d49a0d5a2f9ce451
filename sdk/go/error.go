package sirocco

import (
	"context"
	"errors"
	"net"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// Code says what kind of error it is; docs/errors.md explains each.
type Code string

// The codes.
const (
	InvalidArgument    Code = "invalid_argument"
	NotFound           Code = "not_found"
	AlreadyExists      Code = "already_exists"
	FailedPrecondition Code = "failed_precondition"
	Quota              Code = "quota"
	NoCapacity         Code = "no_capacity"
	ImageNotFound      Code = "image_not_found"
	PermissionDenied   Code = "permission_denied"
	Unauthenticated    Code = "unauthenticated"
	Unavailable        Code = "unavailable"
	Deadline           Code = "deadline"
	Internal           Code = "internal"
)

// Error is what every call of this package fails with.
type Error struct {
	Code Code
	// Message is one sentence for a person. It is no contract.
	Message string
	// Field is the path of the bad field, for InvalidArgument; for
	// PermissionDenied, what the sandbox's own user has no right to.
	Field string
	// Scope is what ran out ("tenant", "pool", "node", "region"), for Quota
	// and NoCapacity.
	Scope string
	// RetryAfter is when a retry may work; zero means unknown.
	RetryAfter time.Duration
	// ErrorID finds the log line, for Internal.
	ErrorID string

	cause error
}

// Error returns the code, the field and the message.
func (e *Error) Error() string {
	s := string(e.Code)
	if e.Field != "" {
		s += " (" + e.Field + ")"
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.ErrorID != "" {
		s += " (error id " + e.ErrorID + ")"
	}
	return s
}

// Unwrap returns the error of the transport, if that was the cause.
func (e *Error) Unwrap() error { return e.cause }

// CodeOf returns the code of an error: "" for nil, Internal for one that is no
// *Error.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

// Unreachable says whether err means that nothing answered at the address.
func Unreachable(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	return errors.As(err, &dns) || errors.As(err, &op) && op.Op == "dial"
}

// fallback is what a code of the transport means where no detail came along:
// from a proxy, or from a connection that broke.
var fallback = map[connect.Code]Code{
	connect.CodeCanceled: Unavailable, connect.CodeInvalidArgument: InvalidArgument,
	connect.CodeDeadlineExceeded: Deadline, connect.CodeNotFound: NotFound,
	connect.CodeAlreadyExists: AlreadyExists, connect.CodePermissionDenied: PermissionDenied,
	connect.CodeResourceExhausted: Quota, connect.CodeFailedPrecondition: FailedPrecondition,
	connect.CodeAborted: Unavailable, connect.CodeOutOfRange: InvalidArgument,
	connect.CodeUnimplemented: InvalidArgument, connect.CodeUnavailable: Unavailable,
	connect.CodeUnauthenticated: Unauthenticated,
}

// typed returns err as an *Error; nil stays nil.
func typed(err error) error {
	if err == nil {
		return nil
	}
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	e := &Error{Code: Internal, Message: err.Error(), cause: err}
	var ce *connect.Error
	switch {
	case errors.As(err, &ce):
		for _, d := range ce.Details() {
			if v, derr := d.Value(); derr == nil {
				if detail, ok := v.(*siroccov1.ErrorDetail); ok {
					return fromDetail(detail, err)
				}
			}
		}
		e.Message = ce.Message()
		if code, ok := fallback[ce.Code()]; ok {
			e.Code = code
		}
		switch {
		case connect.IsWireError(err) || ce.Code() != connect.CodeUnknown && ce.Code() != connect.CodeInternal:
		case errors.Is(err, proto.Error):
			// The message itself can't be sent: it holds text that is not UTF-8.
			e.Code = InvalidArgument
		default:
			// A connection that breaks in the middle is reported so; what the other
			// side says of itself comes over the wire.
			e.Code = Unavailable
		}
	case errors.Is(err, context.DeadlineExceeded):
		e.Code = Deadline
	case errors.Is(err, context.Canceled):
		e.Code = Unavailable
	}
	return e
}

func fromDetail(d *siroccov1.ErrorDetail, cause error) *Error {
	return &Error{
		Code: Code(d.GetCode()), Message: d.GetMessage(), Field: d.GetField(), Scope: d.GetScope(),
		RetryAfter: d.GetRetryAfter().AsDuration(), ErrorID: d.GetErrorId(), cause: cause,
	}
}

// passing says whether the same call may work a moment later.
func passing(err error) bool { return CodeOf(err) == Unavailable }
