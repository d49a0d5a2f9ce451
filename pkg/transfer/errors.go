package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/runtime"
)

// What can be wrong with the other side or the way to it. Each comes inside a
// *fault.Fault, whose code the other side is told too. A full disk at the target is
// runtime.ErrDiskFull (code no_capacity, scope node).
var (
	// ErrGone: the stream ended or broke. Code unavailable.
	ErrGone = errors.New("transfer: the other node went away")
	// ErrStalled: the other side moved no byte for Options.Stall. Code unavailable.
	ErrStalled = errors.New("transfer: the other node stalls")
	// ErrFormat: what came breaks the format or the order. Code invalid_argument.
	ErrFormat = errors.New("transfer: the other node breaks the format")
	// ErrTooMuch: more files or bytes than the target takes. Code no_capacity.
	ErrTooMuch = errors.New("transfer: more than is taken")
	// ErrCorrupt: a file is not what was sent. Code unavailable.
	ErrCorrupt = errors.New("transfer: a file came broken")
)

// GaveUp is what the other side said when it gave up.
type GaveUp struct {
	// Fault is why, with code and message as they were there.
	Fault *fault.Fault
}

// Error says who gave up, and why.
func (e *GaveUp) Error() string { return "the other node gave up: " + e.Fault.Error() }

// Unwrap returns the fault.
func (e *GaveUp) Unwrap() error { return e.Fault }

// blame makes a fault of one of the errors above.
func blame(kind error, format string, args ...any) error {
	f := &fault.Fault{Code: fault.Unavailable, Message: fmt.Sprintf(format, args...), Cause: kind}
	switch {
	case errors.Is(kind, ErrFormat):
		f.Code = fault.InvalidArgument
	case errors.Is(kind, ErrTooMuch), errors.Is(kind, runtime.ErrDiskFull):
		f.Code, f.Scope = fault.NoCapacity, "node"
	}
	return f
}

// connError sorts out why the stream was not read or written. The end of ctx comes
// first: it is what ends a wait, by a deadline.
func connError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return blame(ErrStalled, "the other node made no progress")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return blame(ErrGone, "the other node ended the stream")
	}
	return blame(ErrGone, "the stream to the other node broke: %v", err)
}

// diskError marks a full disk.
func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return blame(runtime.ErrDiskFull, "no room for the checkpoint: %v", err)
	}
	return err
}
