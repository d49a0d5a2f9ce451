package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// Store is what the bus of a guard's region holds. Its methods may be called
// concurrently. Every error but those of this package means that it is not known what is
// there; a write may then have happened.
type Store struct {
	js             jetstream.JetStream
	guards, fences jetstream.KeyValue
}

// Open binds to the buckets of a region's bus, which must exist (see package topology).
func Open(ctx context.Context, js jetstream.JetStream) (*Store, error) {
	s := &Store{js: js}
	for name, kv := range map[string]*jetstream.KeyValue{subject.BucketGuards: &s.guards, subject.BucketFences: &s.fences} {
		var err error
		if *kv, err = js.KeyValue(ctx, name); err != nil {
			return nil, fmt.Errorf("open bucket %s: %w", name, err)
		}
	}
	return s, nil
}

// Renew sets up the fence of a node of another region for another FenceTTL.
func (s *Store) Renew(ctx context.Context, region, node string) error {
	if _, err := s.fences.Put(ctx, subject.NodeKey(region, node), nil); err != nil {
		return fmt.Errorf("renew the fence of node %s of region %s: %w", node, region, err)
	}
	return nil
}

// Fenced says whether the fence of a node stands.
func (s *Store) Fenced(ctx context.Context, region, node string) (bool, error) {
	_, _, err := bus.Latest(ctx, s.js, subject.BucketFences, subject.NodeKey(region, node))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("read the fence of node %s of region %s: %w", node, region, err)
	}
	return true, nil
}

// Get returns a sandbox's entry; nil if there is none.
func (s *Store) Get(ctx context.Context, tenant, id string) (*Entry, error) {
	e, _, err := s.read(ctx, tenant, id)
	return e, err
}

// read is Get with the revision.
func (s *Store) read(ctx context.Context, tenant, id string) (*Entry, uint64, error) {
	value, revision, err := bus.Latest(ctx, s.js, subject.BucketGuards, subject.RecordKey(tenant, id))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read who guards sandbox %s: %w", id, err)
	}
	e := &Entry{}
	if err := json.Unmarshal(value, e); err != nil {
		return nil, 0, fmt.Errorf("decode who guards sandbox %s: %w", id, err)
	}
	return e, revision, nil
}

// change writes what decide makes of an entry, again and again until it is not overtaken.
// Where decide returns no entry, nothing is written.
func (s *Store) change(ctx context.Context, tenant, id string, decide func(here *Entry) (*Entry, error)) error {
	for {
		here, revision, err := s.read(ctx, tenant, id)
		if err != nil {
			return err
		}
		next, err := decide(here)
		if err != nil || next == nil {
			return err
		}
		value, err := json.Marshal(next)
		if err != nil {
			return err
		}
		key := subject.RecordKey(tenant, id)
		if revision == 0 {
			_, err = s.guards.Create(ctx, key, value)
		} else {
			_, err = s.guards.Update(ctx, key, value, revision)
		}
		if err == nil {
			return nil
		}
		if !bus.IsConflict(err) {
			return fmt.Errorf("write who guards sandbox %s: %w", id, err)
		}
	}
}

// Engage writes that a term begins: see the function.
func (s *Store) Engage(ctx context.Context, tenant, id, region, node string, epoch uint64, term string) error {
	return s.change(ctx, tenant, id, func(here *Entry) (*Entry, error) { return Engage(here, region, node, epoch, term) })
}

// Confirm writes that the source is back: see the function. The fence must have been
// renewed before.
func (s *Store) Confirm(ctx context.Context, tenant, id, region, node string, epoch uint64, term string) error {
	return s.change(ctx, tenant, id, func(here *Entry) (*Entry, error) { return Confirm(here, region, node, epoch, term) })
}

// Release writes that a term has ended: see the function. Error: ErrTaken. One that has
// ended before is none.
func (s *Store) Release(ctx context.Context, tenant, id string, epoch uint64, term string) error {
	err := s.change(ctx, tenant, id, func(here *Entry) (*Entry, error) { return Release(here, epoch, term) })
	if errors.Is(err, ErrOver) {
		return nil
	}
	return err
}

// Keep writes that a checkpoint is kept: see the function.
func (s *Store) Keep(ctx context.Context, tenant, id, term, guard, folder string, taken time.Time) error {
	return s.change(ctx, tenant, id, func(here *Entry) (*Entry, error) { return Keep(here, term, guard, folder, taken) })
}

// Claim takes a sandbox over, by the one write after which nobody else may run it, and
// returns under which epoch: see the function. Errors: ErrOver, ErrFenced.
func (s *Store) Claim(ctx context.Context, tenant, id, guard, folder string, epoch uint64) (claimed uint64, err error) {
	err = s.change(ctx, tenant, id, func(here *Entry) (*Entry, error) {
		fenced := true
		if here != nil {
			var err error
			if fenced, err = s.Fenced(ctx, here.Region, here.Node); err != nil {
				return nil, err
			}
		}
		next, again, err := Claim(here, fenced, guard, folder, epoch)
		if err != nil {
			return nil, err
		}
		claimed = next.Claimed
		if again {
			return nil, nil
		}
		return next, nil
	})
	return claimed, err
}
