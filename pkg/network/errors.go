package network

import (
	"errors"
	"fmt"
)

// Errors that callers act on.
var (
	// ErrConfig: a value of Config can't be used.
	ErrConfig = errors.New("network: bad configuration")
	// ErrPolicy: the policy is malformed; whoever asked for it is to blame.
	ErrPolicy = errors.New("network: bad policy")
	// ErrExists: that id holds a slot already.
	ErrExists = errors.New("network: id holds a slot already")
	// ErrBusy: another call for the same id is under way.
	ErrBusy = errors.New("network: another call for this id is under way")
	// ErrExhausted: every address of the range is taken.
	ErrExhausted = errors.New("network: no free address")
	// ErrClosed: the pool has been closed.
	ErrClosed = errors.New("network: pool is closed")
)

// SetupError means that the machine lacks something the package can't do
// without. It is for an operator: it says what, and what to do about it.
type SetupError struct {
	// What is missing or failed; Remedy is what a person can do.
	What, Remedy string
	// Err is the cause, possibly nil.
	Err error
}

// Error gives all three in one line.
func (e *SetupError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("network: %s; %s", e.What, e.Remedy)
	}
	return fmt.Sprintf("network: %s: %v; %s", e.What, e.Err, e.Remedy)
}

// Unwrap returns the cause.
func (e *SetupError) Unwrap() error { return e.Err }
