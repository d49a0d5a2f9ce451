package bus

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// TryTimeout is how long one try of a call to the bus waits for its answer. An
	// answer that is lost, because the server died between the call and it, never
	// comes: without this bound the call would wait as long as its caller does.
	TryTimeout = 3 * time.Second
	// Patience covers the election of a stream's leader after it was lost uncleanly
	// (measured: writes stop for up to 7.5 s).
	Patience = 12 * time.Second

	againPause = 100 * time.Millisecond
)

// Again calls do until it does not fail for want of an answer, for Patience or until
// ctx ends; again says that what is asked for may have been done by an earlier try.
// The error is the last one of do.
func Again[T any](ctx context.Context, do func(ctx context.Context, again bool) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	for again := false; ; again = true {
		try, stop := context.WithTimeout(ctx, TryTimeout)
		out, err := do(try, again)
		lost := err != nil && (try.Err() != nil || Transient(err))
		stop()
		if !lost || ctx.Err() != nil {
			return out, err
		}
		select {
		case <-time.After(againPause):
		case <-ctx.Done():
			return out, err
		}
	}
}

// Transient says whether an error of the bus means that nobody answered, or that
// nobody could just now: trying again may help.
func Transient(err error) bool {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api.Code == 503
	}
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, nats.ErrDisconnected) || errors.Is(err, nats.ErrReconnectBufExceeded) ||
		errors.Is(err, jetstream.ErrNoStreamResponse)
}

// Patient returns a bucket whose Get, Create, Update and Delete are tried Again when
// an answer is lost. One that was carried out by a try whose answer was lost succeeds
// like any other: what was to be written is there, by the next revision.
func Patient(kv jetstream.KeyValue) jetstream.KeyValue { return patient{kv} }

type patient struct{ jetstream.KeyValue }

func (p patient) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	return Again(ctx, func(ctx context.Context, _ bool) (jetstream.KeyValueEntry, error) { return p.KeyValue.Get(ctx, key) })
}

func (p patient) Create(ctx context.Context, key string, value []byte, opts ...jetstream.KVCreateOpt) (uint64, error) {
	return Again(ctx, func(ctx context.Context, again bool) (uint64, error) {
		revision, err := p.KeyValue.Create(ctx, key, value, opts...)
		if again && IsConflict(err) {
			return p.written(ctx, key, value, err)
		}
		return revision, err
	})
}

func (p patient) Update(ctx context.Context, key string, value []byte, last uint64) (uint64, error) {
	return Again(ctx, func(ctx context.Context, again bool) (uint64, error) {
		revision, err := p.KeyValue.Update(ctx, key, value, last)
		if again && IsConflict(err) {
			return p.written(ctx, key, value, err)
		}
		return revision, err
	})
}

// written returns the revision of a key if it holds value, else the error.
func (p patient) written(ctx context.Context, key string, value []byte, err error) (uint64, error) {
	if entry, gerr := p.KeyValue.Get(ctx, key); gerr == nil && bytes.Equal(entry.Value(), value) {
		return entry.Revision(), nil
	}
	return 0, err
}

func (p patient) Delete(ctx context.Context, key string, opts ...jetstream.KVDeleteOpt) error {
	_, err := Again(ctx, func(ctx context.Context, again bool) (struct{}, error) {
		err := p.KeyValue.Delete(ctx, key, opts...)
		if again && IsConflict(err) {
			if _, gerr := p.KeyValue.Get(ctx, key); errors.Is(gerr, jetstream.ErrKeyNotFound) {
				err = nil
			}
		}
		return struct{}{}, err
	})
	return err
}
