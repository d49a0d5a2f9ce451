package regions

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/weight"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// publish writes what the region says of itself. Where it has several schedulers each
// writes, and the newest stands: they see the same nodes.
func (c *Controller) publish(ctx context.Context, bucket jetstream.KeyValue, own *siroccov1.RegionReport) error {
	if c.busLatency > 0 {
		own.BusLatency = durationpb.New(c.busLatency)
	}
	value, err := proto.Marshal(own)
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	began := time.Now()
	if _, err := bucket.Put(ctx, subject.RegionKey(subject.RegionReport, c.env.Region), value); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	c.busLatency = time.Since(began)
	return nil
}

// readReport reads what another region says of itself.
func readReport(ctx context.Context, js jetstream.JetStream, region string) (*siroccov1.RegionReport, error) {
	bucket, err := js.KeyValue(ctx, subject.BucketRegions)
	if err != nil {
		return nil, err
	}
	entry, err := bucket.Get(ctx, subject.RegionKey(subject.RegionReport, region))
	if err != nil {
		return nil, err
	}
	r := &siroccov1.RegionReport{}
	return r, proto.Unmarshal(entry.Value(), r)
}

// readWeights returns the last step and its revision; empty and 0 before the first.
func readWeights(ctx context.Context, bucket jetstream.KeyValue, region string) (*siroccov1.RegionWeights, uint64, error) {
	last := &siroccov1.RegionWeights{}
	entry, err := bucket.Get(ctx, subject.RegionKey(subject.RegionWeights, region))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return last, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read weights: %w", err)
	}
	if err := proto.Unmarshal(entry.Value(), last); err != nil {
		last = &siroccov1.RegionWeights{} // it is written anew
	}
	return last, entry.Revision(), nil
}

func encodeState(s weight.State) ([]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode the state of the weights: %w", err)
	}
	return text, nil
}
