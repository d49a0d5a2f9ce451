// Package mirror keeps a copy of a key-value bucket in memory, so that reading
// it costs no round trip and goes on while the bus is away.
//
// Guarantees: a change is seen in the order in which it was written, usually
// within a millisecond. A value that can't be decoded counts as absent.
package mirror

import (
	"context"
	"maps"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
)

// Mirror is a copy of a bucket whose values are of type T. Values that it
// returns are shared and must not be changed.
//
// Concurrency: Run owns the writing; every other method may be called from
// anywhere.
type Mirror[T any] struct {
	decode func(key string, value []byte) (T, error)

	mu     sync.RWMutex
	values map[string]T
	ready  chan struct{}
	once   sync.Once
}

// New makes an empty mirror; Run fills it.
func New[T any](decode func(key string, value []byte) (T, error)) *Mirror[T] {
	return &Mirror[T]{decode: decode, values: map[string]T{}, ready: make(chan struct{})}
}

// Ready is closed once the mirror has caught up for the first time.
func (m *Mirror[T]) Ready() <-chan struct{} { return m.ready }

// Get returns the value of a key, and whether there is one.
func (m *Mirror[T]) Get(key string) (T, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	v, ok := m.values[key]
	return v, ok
}

// All returns a copy of everything, by key.
func (m *Mirror[T]) All() map[string]T {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return maps.Clone(m.values)
}

// Run follows the bucket until ctx ends, and then returns nil. Losing the bus
// only pauses it.
func (m *Mirror[T]) Run(ctx context.Context, js jetstream.JetStream, bucket string) error {
	// Until it has caught up, a watch gathers apart: what was deleted while
	// nobody listened must not stay.
	var gathered map[string]T
	return bus.Watch(ctx, js, bucket, ">", func() { gathered = map[string]T{} }, func(entry jetstream.KeyValueEntry) {
		switch {
		case entry == nil:
			m.replace(gathered)
			gathered = nil
		case gathered != nil:
			m.apply(gathered, entry)
		default:
			m.mu.Lock()
			m.apply(m.values, entry)
			m.mu.Unlock()
		}
	})
}

func (m *Mirror[T]) replace(values map[string]T) {
	m.mu.Lock()
	m.values = values
	m.mu.Unlock()
	m.once.Do(func() { close(m.ready) })
}

func (m *Mirror[T]) apply(to map[string]T, entry jetstream.KeyValueEntry) {
	if entry.Operation() == jetstream.KeyValuePut {
		if v, err := m.decode(entry.Key(), entry.Value()); err == nil {
			to[entry.Key()] = v
			return
		}
	}
	delete(to, entry.Key())
}
