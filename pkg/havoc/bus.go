package havoc

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

const (
	// MaxStop is for how long a bus can be made to hang.
	MaxStop = 10 * time.Minute
	// StopDelay is how long after an order to hang a bus begins to.
	StopDelay = 500 * time.Millisecond
	// MaxBusLatency is how much slower a bus can be made at most. Clients give up on one
	// that takes longer than they wait for a sign of life.
	MaxBusLatency = 2 * time.Second
)

// BusOrder is what is to happen to a region's bus itself. A bus that hangs is told
// nothing either: an order to hang ends by itself.
type BusOrder struct {
	// StopFrom and StopUntil are from and until when it hangs. Between the order and its
	// effect there is time to tell who gave it that it was taken.
	StopFrom  time.Time `json:"stop_from"`
	StopUntil time.Time `json:"stop_until"`
	// Latency is added to all that it sends.
	Latency time.Duration `json:"latency_ns"`
	// Until is when that ends by itself.
	Until time.Time `json:"until"`
}

// Check says what is wrong with an order given now. The error is an InvalidArgument
// fault.
func (o BusOrder) Check(now time.Time) error {
	if d := o.StopUntil.Sub(now); d > MaxStop+StopDelay {
		return fault.Invalid("stop", "%v is out of range: up to %v", d.Round(time.Second), MaxStop)
	}
	if o.Latency < 0 || o.Latency > MaxBusLatency {
		return fault.Invalid("latency", "%v is out of range: up to %v", o.Latency, MaxBusLatency)
	}
	return nil
}

// SetBus gives an order for the bus of a region. It takes the place of the one before.
func (s *Store) SetBus(ctx context.Context, region string, o BusOrder) error {
	if err := o.Check(time.Now()); err != nil {
		return err
	}
	value, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode order: %w", err)
	}
	if _, err := s.bucket.Put(ctx, subject.BusFaultKey(region), value); err != nil {
		return fmt.Errorf("order faults: %w", err)
	}
	return nil
}

// FollowBus calls obey with each order for the bus of a region, and with the zero order
// when one is taken back, until ctx ends; then it returns nil. obey is called one at a
// time.
func FollowBus(ctx context.Context, js jetstream.JetStream, region string, obey func(BusOrder)) error {
	given := false
	return bus.Watch(ctx, js, subject.BucketFaults, subject.BusFaultKey(region), func() { given = false }, func(e jetstream.KeyValueEntry) {
		if e == nil {
			if !given {
				obey(BusOrder{}) // it was taken back while nobody listened, or never given
			}
			return
		}
		var o BusOrder
		if e.Operation() == jetstream.KeyValuePut && (json.Unmarshal(e.Value(), &o) != nil || o.Check(time.Now()) != nil) {
			o = BusOrder{} // what can't be read is no order
		}
		given = true
		obey(o)
	})
}
