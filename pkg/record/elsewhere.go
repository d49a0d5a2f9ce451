package record

import (
	"context"
	"encoding/json"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// ElsewhereError says that an idempotency key leads to a sandbox of another region.
type ElsewhereError struct{ Region string }

func (e *ElsewhereError) Error() string {
	return "the idempotency key leads to a sandbox of region " + e.Region
}

// Unwrap makes it a fault for whoever can't pass the request on.
func (e *ElsewhereError) Unwrap() error {
	return fault.New(fault.FailedPrecondition, "%s: ask there", e.Error())
}

// SendElsewhere remembers, before a request is passed on to another region, that its
// key leads there: whatever the weights are when it comes again, it makes no second
// sandbox. It returns the region that the key leads to, which is another one, or ""
// for this one, when the key was used before; and, when it was not, the revision with
// which TakeBack undoes it.
//
// Errors: InvalidArgument (the key was used for another request), Unavailable.
func (s *Store) SendElsewhere(ctx context.Context, tenant, key string, spec *siroccov1.CreateSandboxRequest, region string) (to string, revision uint64, err error) {
	fingerprint, err := fingerprintOf(spec)
	if err != nil {
		return "", 0, err
	}
	value, err := json.Marshal(claim{Fingerprint: fingerprint, Region: region})
	if err != nil {
		return "", 0, err
	}
	revision, err = s.idempotency.Create(ctx, subject.RecordKey(tenant, key), value)
	if err == nil {
		return region, revision, nil
	}
	if !bus.IsConflict(err) {
		return "", 0, busError("claim key "+key, err)
	}
	theirs, err := s.claimed(ctx, tenant, key, fingerprint)
	return theirs.Region, 0, err
}

// TakeBack frees a key of a request that certainly did not reach the other region.
func (s *Store) TakeBack(ctx context.Context, tenant, key string, revision uint64) error {
	if err := s.idempotency.Delete(ctx, subject.RecordKey(tenant, key), jetstream.LastRevision(revision)); err != nil {
		return busError("free key "+key, err)
	}
	return nil
}
