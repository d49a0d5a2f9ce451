package guest

import "strings"

// Code says what kind of error a guest answered with. Codes are part of the
// protocol; texts are for people.
type Code string

// The codes of a guest's errors.
const (
	CodeInvalid         Code = "invalid"
	CodeNotFound        Code = "not_found"
	CodeExists          Code = "exists"
	CodePermission      Code = "permission"
	CodeNotDir          Code = "not_dir"
	CodeIsDir           Code = "is_dir"
	CodeNotEmpty        Code = "not_empty"
	CodeNoSpace         Code = "no_space"
	CodeCommandNotFound Code = "command_not_found"
	// CodeNotExecutable: the command is there, but its user may not execute it,
	// or nobody can.
	CodeNotExecutable  Code = "not_executable"
	CodeWorkdirMissing Code = "workdir_missing"
	// CodeWorkdirDenied: the folder is there, but the user may not enter it.
	CodeWorkdirDenied Code = "workdir_denied"
	CodeUnknownUser   Code = "unknown_user"
	// CodeNoResources: no more processes, descriptors or memory.
	CodeNoResources Code = "no_resources"
	// CodeGap: standard input was sent from an offset that is too far on.
	CodeGap Code = "gap"
	// CodeClosed: standard input is closed, or was never open.
	CodeClosed Code = "closed"
	// CodeEnded: the process has ended.
	CodeEnded Code = "ended"
	// CodeConfigured: the sandbox's command runs with another configuration.
	CodeConfigured Code = "configured"
	// CodeStopping: the sandbox has been told to shut down.
	CodeStopping Code = "stopping"
	// CodeLimit: more than the guest keeps or follows.
	CodeLimit Code = "limit"
	// CodeOverflow: changes came faster than they were read; some are lost.
	CodeOverflow    Code = "overflow"
	CodeUnsupported Code = "unsupported"
	CodeInternal    Code = "internal"
)

// Error is an answer of the guest. errors.Is compares codes only.
type Error struct {
	Code Code
	Text string
}

// Error returns the text, or the code where there is none.
func (e *Error) Error() string {
	if e.Text == "" {
		return "guest: " + string(e.Code)
	}
	return "guest: " + e.Text
}

// Is reports whether target is an Error with the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Fail makes an Error whose text is the parts joined. It does without package
// fmt, which would be the largest part of what a supervisor touches.
func Fail(code Code, parts ...string) *Error {
	return &Error{Code: code, Text: strings.Join(parts, "")}
}

// Errors to compare with, by errors.Is.
var (
	ErrInvalid         = &Error{Code: CodeInvalid}
	ErrNotFound        = &Error{Code: CodeNotFound}
	ErrExists          = &Error{Code: CodeExists}
	ErrPermission      = &Error{Code: CodePermission}
	ErrNotDir          = &Error{Code: CodeNotDir}
	ErrIsDir           = &Error{Code: CodeIsDir}
	ErrNotEmpty        = &Error{Code: CodeNotEmpty}
	ErrNoSpace         = &Error{Code: CodeNoSpace}
	ErrCommandNotFound = &Error{Code: CodeCommandNotFound}
	ErrNotExecutable   = &Error{Code: CodeNotExecutable}
	ErrWorkdirMissing  = &Error{Code: CodeWorkdirMissing}
	ErrWorkdirDenied   = &Error{Code: CodeWorkdirDenied}
	ErrUnknownUser     = &Error{Code: CodeUnknownUser}
	ErrNoResources     = &Error{Code: CodeNoResources}
	ErrGap             = &Error{Code: CodeGap}
	ErrStdinClosed     = &Error{Code: CodeClosed}
	ErrEnded           = &Error{Code: CodeEnded}
	ErrConfigured      = &Error{Code: CodeConfigured}
	ErrStopping        = &Error{Code: CodeStopping}
	ErrLimit           = &Error{Code: CodeLimit}
	ErrOverflow        = &Error{Code: CodeOverflow}
	ErrUnsupported     = &Error{Code: CodeUnsupported}
	ErrInternal        = &Error{Code: CodeInternal}
)
