package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// passedOffset is added to the exit codes of the platform's errors where the
// others are a program's.
const passedOffset = 100

// What goes wrong here, and not on the platform: a file that can't be read, a
// machine that lacks something.
const (
	exitLocal = 1
	codeLocal = "local"
	// exitInterrupted is how shells tell of a Ctrl-C.
	exitInterrupted = 130
)

// usageError is a command line that can't be understood.
type usageError struct {
	command string
	err     error
}

func (e usageError) Error() string { return e.err.Error() }

// exitError is a program that ended with a code other than 0.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// hinted is an error with what to do about it.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

// failed makes an error with a hint.
func failed(hint, format string, args ...any) error {
	return hinted{fmt.Errorf(format, args...), hint}
}

// notStarted is a process that the sandbox could not start, for a reason that
// shells have an exit code for. Unlike the end of a process it is an error of
// the platform too, and is told as one.
type notStarted struct {
	error
	code int
}

func (n notStarted) Unwrap() error { return n.error }

// startError gives the refusal of an exec the exit code that a sandbox ends
// with whose own command can't be started.
func startError(err error) error {
	var e *sirocco.Error
	if !errors.As(err, &e) {
		return err
	}
	switch {
	case e.Code == sirocco.InvalidArgument && e.Field == "command":
		return notStarted{err, exitNoCommand}
	case e.Code == sirocco.InvalidArgument && (e.Field == "workdir" || e.Field == "user"),
		e.Code == sirocco.PermissionDenied && (e.Field == "workdir" || e.Field == "command"):
		return notStarted{err, exitNoStart}
	}
	return err
}

// jsonError is how --json prints an error.
type jsonError struct {
	Code              string  `json:"code"`
	Message           string  `json:"message"`
	Field             string  `json:"field,omitempty"`
	Scope             string  `json:"scope,omitempty"`
	RetryAfterSeconds float64 `json:"retry_after_seconds,omitempty"`
	ErrorID           string  `json:"error_id,omitempty"`
	Hint              string  `json:"hint,omitempty"`
}

// finish says what went wrong and returns the exit code.
func (a *app) finish(ctx context.Context, err error) int {
	var exit exitError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		var e ended
		if errors.As(err, &e) {
			fmt.Fprintln(a.Err, "sirocco:", e.text)
		}
		return exit.code
	case errors.Is(err, errSilent):
		return exitLocal
	case ctx.Err() != nil && (errors.Is(err, context.Canceled) || sirocco.CodeOf(err) == sirocco.Unavailable):
		return exitInterrupted
	case errors.As(err, &usage):
		a.report(jsonError{Code: string(fault.InvalidArgument), Message: err.Error(), Hint: "see " + usage.command + " --help"})
		return fault.ExitCode(&fault.Fault{Code: fault.InvalidArgument})
	}
	out := jsonError{Code: codeLocal, Message: oneLine(err), Hint: a.hint(err)}
	n := exitLocal
	var e *sirocco.Error
	var f *fault.Fault
	switch {
	case errors.As(err, &e):
		f = &fault.Fault{Code: fault.Code(e.Code), Message: e.Message, Field: e.Field, Scope: e.Scope, ErrorID: e.ErrorID, RetryAfter: e.RetryAfter}
		if fault.ExitCode(f) == 0 {
			f.Code = fault.Internal // a newer platform's
		}
	case errors.As(err, &f):
	}
	if f != nil {
		n = fault.ExitCode(f)
		out.Code, out.Message, out.Field, out.Scope, out.ErrorID = string(f.Code), f.Message, f.Field, f.Scope, f.ErrorID
		out.RetryAfterSeconds = f.RetryAfter.Seconds()
	}
	if sirocco.Unreachable(err) {
		out.Message = fmt.Sprintf("nothing answers at %s", a.apiURL)
	}
	a.report(out)
	var start notStarted
	switch {
	case errors.As(err, &start):
		return start.code
	case a.passes:
		return n + passedOffset
	}
	return n
}

// oneLine is an error's text; those that were joined have several lines.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", ": ") }

func (a *app) report(e jsonError) {
	if a.json {
		_ = writeJSON(a.Err, map[string]jsonError{"error": e})
		return
	}
	text := e.Message
	if e.Field != "" {
		text = e.Field + ": " + text
	}
	if e.ErrorID != "" {
		text += " (error id " + e.ErrorID + ")"
	}
	if text == "" {
		text = e.Code
	}
	if e.Hint != "" {
		text += "\n  " + e.Hint
	}
	fmt.Fprintln(a.Err, "sirocco:", text)
}

// hint says what to do about an error; empty where its text does.
func (a *app) hint(err error) string {
	var h hinted
	if errors.As(err, &h) {
		return h.hint
	}
	if sirocco.Unreachable(err) {
		return "is `sirocco up` running? Another address goes in --api or " + EnvAPI + "."
	}
	var e *sirocco.Error
	if !errors.As(err, &e) {
		return ""
	}
	switch e.Code {
	case sirocco.Unauthenticated:
		return "give a key with --api-key or " + EnvAPIKey + "; `sirocco key create` makes one."
	case sirocco.PermissionDenied:
		if e.Field != "" {
			return "" // the sandbox's user lacks the right, not the key
		}
		return "this needs a key of another kind: `sirocco key create --operator`."
	case sirocco.Quota, sirocco.NoCapacity, sirocco.Unavailable:
		if e.RetryAfter > 0 {
			return fmt.Sprintf("try again in %s.", e.RetryAfter.Round(time.Millisecond))
		}
	case sirocco.ImageNotFound:
		return "`sirocco image ls` lists what is at hand."
	case sirocco.Internal:
		if e.ErrorID != "" {
			return "the error id finds the reason in the log of the platform."
		}
	}
	return ""
}
