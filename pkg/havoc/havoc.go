// Package havoc makes nodes slow and unreliable on request, so that one can see what a
// platform does when a node or a region degrades (`sirocco fault`). An order is an entry
// of a bucket; agents follow it only if they were told to (--faults).
package havoc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/mirror"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// MaxLatency is how much slower a start can be made at most.
const MaxLatency = time.Minute

// Order is what is to happen to each start of a sandbox.
type Order struct {
	// Latency is added to it.
	Latency time.Duration `json:"latency_ns"`
	// Errors is the share of starts that fail, 0 to 1.
	Errors float64 `json:"errors"`
	// Until is when it ends by itself.
	Until time.Time `json:"until"`
}

// Check says what is wrong with an order. The error is an InvalidArgument fault.
func (o Order) Check() error {
	if o.Latency < 0 || o.Latency > MaxLatency {
		return fault.Invalid("latency", "%v is out of range: up to %v", o.Latency, MaxLatency)
	}
	if !(o.Errors >= 0 && o.Errors <= 1) { // not a number is neither
		return fault.Invalid("errors", "%v is out of range: 0 to 1", o.Errors)
	}
	return nil
}

// ErrInjected is the failure of a start that was to fail.
var ErrInjected = errors.New("havoc: it was to fail (sirocco fault)")

// Store writes orders.
type Store struct{ bucket jetstream.KeyValue }

// Open binds to the bucket, which must exist (see package topology).
func Open(ctx context.Context, js jetstream.JetStream) (*Store, error) {
	bucket, err := js.KeyValue(ctx, subject.BucketFaults)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", subject.BucketFaults, err)
	}
	return &Store{bucket}, nil
}

// Set gives an order for a node, or for all of the region with node "". It takes the
// place of the one before.
func (s *Store) Set(ctx context.Context, region, node string, o Order) error {
	if err := o.Check(); err != nil {
		return err
	}
	value, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode order: %w", err)
	}
	if _, err := s.bucket.Put(ctx, subject.FaultKey(region, node), value); err != nil {
		return fmt.Errorf("order faults: %w", err)
	}
	return nil
}

// Clear takes all orders back and returns how many there were.
func (s *Store) Clear(ctx context.Context) (int, error) {
	keys, err := s.bucket.ListKeys(ctx)
	if err != nil {
		return 0, fmt.Errorf("list orders: %w", err)
	}
	n := 0
	for key := range keys.Keys() {
		if err := s.bucket.Delete(ctx, key); err != nil {
			return n, fmt.Errorf("take back order %s: %w", key, err)
		}
		n++
	}
	return n, nil
}

// Victim is a node that follows orders. A nil Victim follows none.
type Victim struct {
	region, node string
	orders       *mirror.Mirror[Order]
}

// NewVictim makes the follower of a node.
func NewVictim(region, node string) *Victim {
	return &Victim{region: region, node: node, orders: mirror.New(decode)}
}

func decode(key string, value []byte) (o Order, err error) {
	if err := json.Unmarshal(value, &o); err != nil {
		return o, fmt.Errorf("decode order %s: %w", key, err)
	}
	return o, o.Check()
}

// Run follows the orders until ctx ends, and then returns nil.
func (v *Victim) Run(ctx context.Context, js jetstream.JetStream) error {
	if v == nil {
		return nil
	}
	return v.orders.Run(ctx, js, subject.BucketFaults)
}

// Suffer does what is ordered for one start: it takes its time, and returns ErrInjected
// if the start is to fail. An order for the node stands before one for the region.
func (v *Victim) Suffer(ctx context.Context) error {
	if v == nil {
		return nil
	}
	o, ok := v.orders.Get(subject.FaultKey(v.region, v.node))
	if !ok {
		o, ok = v.orders.Get(subject.FaultKey(v.region, ""))
	}
	if !ok || time.Now().After(o.Until) {
		return nil
	}
	if o.Latency > 0 {
		timer := time.NewTimer(o.Latency)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if rand.Float64() < o.Errors { //nolint:gosec // whom it hits need not be secret
		return ErrInjected
	}
	return nil
}
