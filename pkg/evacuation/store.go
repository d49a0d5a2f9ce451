package evacuation

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// Errors of a store.
var (
	// ErrNone says that there has been no such order.
	ErrNone = errors.New("evacuation: there is none")
	// ErrConflict says that somebody else wrote first.
	ErrConflict = errors.New("evacuation: written by somebody else meanwhile")
	// ErrNoChange is what a change returns that has nothing to change.
	ErrNoChange = errors.New("evacuation: nothing to change")
)

// Store keeps the orders of a region and their progress. It is safe for concurrent use.
type Store struct{ bucket jetstream.KeyValue }

// Open binds to the bucket, which must exist (see package topology).
func Open(ctx context.Context, js jetstream.JetStream) (*Store, error) {
	bucket, err := js.KeyValue(ctx, subject.BucketEvacuations)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", subject.BucketEvacuations, err)
	}
	return &Store{bus.Patient(bucket)}, nil
}

// Get returns the last order about a region, or about a node of it, and its revision.
// Error: ErrNone.
func (s *Store) Get(ctx context.Context, region, node string) (*siroccov1.Evacuation, uint64, error) {
	key := subject.EvacuationKey(region, node)
	entry, err := s.bucket.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, ErrNone
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read evacuation %s: %w", key, err)
	}
	e, err := Decode(key, entry.Value())
	return e, entry.Revision(), err
}

// Decode reads an entry of the bucket.
func Decode(key string, value []byte) (*siroccov1.Evacuation, error) {
	e := &siroccov1.Evacuation{}
	if err := proto.Unmarshal(value, e); err != nil {
		return nil, fmt.Errorf("decode evacuation %s: %w", key, err)
	}
	if region, node, err := subject.ParseEvacuationKey(key); err != nil || region != e.GetRegion() || node != e.GetNode() || checkStages(e.GetStages()) != nil {
		return nil, fmt.Errorf("decode evacuation %s: it is about %s %s, in stages %v", key, e.GetRegion(), e.GetNode(), e.GetStages())
	}
	return e, nil
}

// Swap writes an order over the revision that it was read with, 0 for the first, and
// returns the new one. Error: ErrConflict.
func (s *Store) Swap(ctx context.Context, e *siroccov1.Evacuation, revision uint64) (uint64, error) {
	key := subject.EvacuationKey(e.GetRegion(), e.GetNode())
	value, err := proto.Marshal(e)
	if err != nil {
		return 0, fmt.Errorf("encode evacuation %s: %w", key, err)
	}
	if revision == 0 {
		revision, err = s.bucket.Create(ctx, key, value)
	} else {
		revision, err = s.bucket.Update(ctx, key, value, revision)
	}
	if bus.IsConflict(err) {
		return 0, ErrConflict
	}
	if err != nil {
		return 0, fmt.Errorf("write evacuation %s: %w", key, err)
	}
	return revision, nil
}

// Order writes an order, unless one about the same is under way that nobody has cancelled:
// then that is returned, as it is.
func (s *Store) Order(ctx context.Context, e *siroccov1.Evacuation) (*siroccov1.Evacuation, error) {
	for {
		last, revision, err := s.Get(ctx, e.GetRegion(), e.GetNode())
		switch {
		case err != nil && !errors.Is(err, ErrNone):
			return nil, err
		case err == nil && last.GetCancelled() == nil && !Over(last):
			return last, nil
		case err == nil && last.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_CANCELLED:
			// The region still lacks what the last one took from it: that is what this
			// one is to give back.
			e.LevelBefore, e.WordBefore, e.WordUntilBefore = last.LevelBefore, last.WordBefore, last.GetWordUntilBefore()
		}
		if _, err := s.Swap(ctx, e, revision); !errors.Is(err, ErrConflict) {
			return e, err
		}
	}
}

// Change changes the last order, again and again until it is not overtaken. Errors:
// ErrNone, those of change but ErrNoChange, with which nothing is written.
func (s *Store) Change(ctx context.Context, region, node string, change func(*siroccov1.Evacuation) error) (*siroccov1.Evacuation, error) {
	for {
		e, revision, err := s.Get(ctx, region, node)
		if err != nil {
			return nil, err
		}
		if err := change(e); errors.Is(err, ErrNoChange) {
			return e, nil
		} else if err != nil {
			return nil, err
		}
		if _, err := s.Swap(ctx, e, revision); !errors.Is(err, ErrConflict) {
			return e, err
		}
	}
}
