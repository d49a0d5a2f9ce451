package bus

import (
	"errors"

	"github.com/nats-io/nats.go/jetstream"
)

// IsConflict says whether a write was refused because somebody else wrote first: what
// was to be created is there, or what was to be replaced has another revision. A stream
// with several replicas says so with another code than one with a single replica, and a
// bucket names only some of these cases, so nobody should look for less than this does.
func IsConflict(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) ||
		errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
			api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}
