package link

import (
	"errors"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
)

// The scopes by which a relay tells the refusals of an agent apart.
const (
	scopePort  = "port"
	scopeEpoch = "epoch"
	scopeMove  = "move"
)

// NothingListens is the refusal of a KindPort stream when no process in the
// sandbox takes connections on the port.
func NothingListens(port uint16) *fault.Fault {
	f := fault.New(fault.FailedPrecondition, "nothing listens on port %d", port)
	f.Scope, f.RetryAfter = scopePort, time.Second
	return f
}

// IsNothingListens says whether err is the refusal made by NothingListens.
func IsNothingListens(err error) bool { return hasScope(err, scopePort) }

// NotHere is the refusal of a stream for a sandbox, or an epoch of it, that
// the node does not run. The caller looks for a newer record.
func NotHere(sandbox string, epoch uint64) *fault.Fault {
	f := fault.New(fault.NotFound, "sandbox %s, epoch %d, does not run on this node", sandbox, epoch)
	f.Scope, f.RetryAfter = scopeEpoch, time.Second
	return f
}

// IsNotHere says whether err is the refusal made by NotHere, or any other
// not_found with which an agent answers.
func IsNotHere(err error) bool {
	return hasScope(err, scopeEpoch) || fault.CodeOf(err) == fault.NotFound
}

// Leaving is the refusal of a stream to a sandbox that is being moved. The caller
// looks for a newer record, and comes again if there is none: the move may be
// called off.
func Leaving(sandbox string) *fault.Fault {
	f := fault.New(fault.Unavailable, "sandbox %s is being moved to another node", sandbox)
	f.Scope, f.RetryAfter = scopeMove, time.Second
	return f
}

// IsLeaving says whether err is the refusal made by Leaving.
func IsLeaving(err error) bool { return hasScope(err, scopeMove) }

func hasScope(err error, scope string) bool {
	var f *fault.Fault
	return errors.As(err, &f) && f.Scope == scope
}
