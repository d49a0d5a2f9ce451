package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// passedOffset is added to the exit codes of the platform's errors where the
// others are a program's.
const passedOffset = 100

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
func (a *app) finish(err error) int {
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
		return 1
	case errors.As(err, &usage):
		a.report(jsonError{Code: string(fault.InvalidArgument), Message: err.Error(), Hint: "see " + usage.command + " --help"})
		return fault.ExitCode(&fault.Fault{Code: fault.InvalidArgument})
	}
	out := jsonError{Message: err.Error(), Hint: a.hint(err)}
	code := fault.CodeOf(err)
	var e *sirocco.Error
	if errors.As(err, &e) {
		code = fault.Code(e.Code)
		out.Message, out.Field, out.Scope, out.ErrorID = e.Message, e.Field, e.Scope, e.ErrorID
		out.RetryAfterSeconds = e.RetryAfter.Seconds()
	}
	if fault.ExitCode(&fault.Fault{Code: code}) == 0 {
		code = fault.Internal
	}
	if sirocco.Unreachable(err) {
		out.Message = fmt.Sprintf("nothing answers at %s", a.apiURL)
	}
	out.Code = string(code)
	a.report(out)
	n := fault.ExitCode(&fault.Fault{Code: code})
	if a.passes {
		n += passedOffset
	}
	return n
}

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
