package apikey

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// Follow copies the keys that are made in another region into this one, until ctx
// ends: a tenant's key opens every region, also one whose neighbours are gone. A key
// that is revoked where it was made is revoked here too, as soon as the other region can
// be reached; one that is revoked here stays revoked here. While the other region is
// away nothing changes. Several may follow the same region.
func (s *Store) Follow(ctx context.Context, from jetstream.JetStream, region string, log *slog.Logger) error {
	var there map[string]bool // nil once it has caught up
	return bus.Watch(ctx, from, subject.BucketKeys, ">", func() { there = map[string]bool{} }, func(e jetstream.KeyValueEntry) {
		var err error
		switch {
		case e == nil:
			err = s.forgetBut(ctx, region, there)
			there = nil
		case e.Operation() == jetstream.KeyValuePut:
			if there != nil {
				there[e.Key()] = true
			}
			err = s.copyOf(ctx, region, e)
		default:
			err = s.forget(ctx, region, e.Key())
		}
		if err != nil && ctx.Err() == nil {
			log.Warn("a key of another region was not taken over; it is when the bus is found again", "peer", region, "err", err)
		}
	})
}

// copyOf takes over a key that was made in the other region.
func (s *Store) copyOf(ctx context.Context, region string, e jetstream.KeyValueEntry) error {
	key, err := decode(e.Key(), e.Value())
	if err != nil || key.Origin != "" || key.Revoked {
		return nil //nolint:nilerr // what can't be read opens nothing there either
	}
	key.Origin = region
	value, err := json.Marshal(key)
	if err != nil {
		return err
	}
	if _, err := s.kv.Create(ctx, e.Key(), value); err != nil && !bus.IsConflict(err) {
		return away("copy key", err)
	}
	return nil
}

// forgetBut removes the copies of what is not in the other region any more.
func (s *Store) forgetBut(ctx context.Context, region string, there map[string]bool) error {
	hashes, err := s.hashes(ctx)
	if err != nil {
		return err
	}
	for _, hash := range hashes {
		if !there[hash] {
			err = errors.Join(err, s.forget(ctx, region, hash))
		}
	}
	return err
}

// forget removes a copy; what was made here, or came from elsewhere, stays.
func (s *Store) forget(ctx context.Context, region, hash string) error {
	entry, err := s.kv.Get(ctx, hash)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return away("read key", err)
	}
	key, err := decode(hash, entry.Value())
	if err != nil || key.Origin != region {
		return nil //nolint:nilerr // it is no copy
	}
	if err := s.kv.Purge(ctx, hash, jetstream.LastRevision(entry.Revision())); err != nil {
		return away("remove key", err)
	}
	return nil
}
