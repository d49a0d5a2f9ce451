// Package fault is the error contract of Sirocco: every error that leaves a
// service is a *Fault with one of the codes below, the same over gRPC, Connect,
// REST, the bus and the command line. The code is the contract, the text is
// not.
package fault

import (
	"context"
	"errors"
	"fmt"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Code says what kind of error it is.
type Code string

// The codes. docs/errors.md explains each with what to do.
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

// Fault is an error with a code.
type Fault struct {
	Code    Code
	Message string
	// Field is the path of the bad field, for InvalidArgument; for
	// PermissionDenied, what the sandbox's own user has no right to; for Quota, the
	// limit of the tenant that was hit (see package quota).
	Field string
	// Scope is what ran out ("tenant", "pool", "node", "region"), for Quota and
	// NoCapacity.
	Scope string
	// RetryAfter is when a retry may work; zero means unknown.
	RetryAfter time.Duration
	// ErrorID finds the log line of an Internal error.
	ErrorID string
	// Cause stays in the process: it is never sent.
	Cause error
}

// Error returns the code, the field and the message.
func (f *Fault) Error() string {
	s := string(f.Code)
	if f.Field != "" {
		s += " (" + f.Field + ")"
	}
	if f.Message != "" {
		s += ": " + f.Message
	}
	if f.ErrorID != "" {
		s += " (error id " + f.ErrorID + ")"
	}
	return s
}

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Cause }

// Is matches another *Fault of the same code, so that
// errors.Is(err, &Fault{Code: NotFound}) works.
func (f *Fault) Is(target error) bool {
	var t *Fault
	return errors.As(target, &t) && t.Code == f.Code
}

// New makes a fault.
func New(code Code, format string, args ...any) *Fault {
	err := fmt.Errorf(format, args...)
	return &Fault{Code: code, Message: err.Error(), Cause: errors.Unwrap(err)}
}

// Invalid makes an InvalidArgument fault about a field.
func Invalid(field, format string, args ...any) *Fault {
	f := New(InvalidArgument, format, args...)
	f.Field = field
	return f
}

// CodeOf returns the code of err: "" for nil, Internal for an error that is
// no fault.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	return From(err).Code
}

// From returns err as a fault. A context's end becomes Deadline or
// Unavailable; any other error that is no fault becomes Internal with a text
// that tells nothing, and err as the cause.
func From(err error) *Fault {
	var f *Fault
	switch {
	case err == nil:
		return nil
	case errors.As(err, &f):
		return f
	case errors.Is(err, context.DeadlineExceeded):
		return &Fault{Code: Deadline, Message: "the deadline passed first", Cause: err}
	case errors.Is(err, context.Canceled):
		return &Fault{Code: Unavailable, Message: "the request was cancelled", Cause: err}
	}
	return &Fault{Code: Internal, Message: "an internal fault", Cause: err}
}

// Detail returns the fault as the message that travels.
func (f *Fault) Detail() *siroccov1.ErrorDetail {
	d := &siroccov1.ErrorDetail{
		Code: string(f.Code), Message: f.Message, Field: f.Field, Scope: f.Scope, ErrorId: f.ErrorID,
	}
	if f.RetryAfter > 0 {
		d.RetryAfter = durationpb.New(f.RetryAfter)
	}
	return d
}

// Header returns the fault as it travels in a header: the ErrorDetail in JSON, on
// one line.
func (f *Fault) Header() string {
	text, err := protojson.Marshal(f.Detail())
	if err != nil {
		return "{}" // cannot be: plain values only; it reads as Internal
	}
	return string(text)
}

// FromHeader is the inverse of Header. What can't be read becomes Internal.
func FromHeader(text string) *Fault {
	d := &siroccov1.ErrorDetail{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), d); err != nil {
		return &Fault{Code: Internal, Message: "an internal fault", Cause: err}
	}
	return FromDetail(d)
}

// FromDetail is the inverse of Detail. A code that is not known becomes
// Internal.
func FromDetail(d *siroccov1.ErrorDetail) *Fault {
	f := &Fault{
		Code: Code(d.GetCode()), Message: d.GetMessage(), Field: d.GetField(), Scope: d.GetScope(),
		ErrorID: d.GetErrorId(), RetryAfter: d.GetRetryAfter().AsDuration(),
	}
	if _, known := rows[f.Code]; !known {
		f.Code = Internal
	}
	return f
}
