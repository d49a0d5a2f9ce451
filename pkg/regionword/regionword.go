// Package regionword writes and reads people's words about the weights of regions.
// Each region's controller follows the words in its own bucket, so whoever has
// something to say says it in every region that can be reached.
package regionword

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// timeout bounds how long another region may take to hear of a word.
const timeout = 2 * time.Second

// Say writes a word about a region into the bucket of the region whose bus js is, or
// takes it back if word is nil.
func Say(ctx context.Context, js jetstream.JetStream, about string, word *siroccov1.RegionWord) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	bucket, err := js.KeyValue(ctx, subject.BucketRegions)
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", subject.BucketRegions, err)
	}
	key := subject.RegionKey(subject.RegionWord, about)
	if word == nil {
		if err := bucket.Delete(ctx, key); err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
			return fmt.Errorf("take back the word about %s: %w", about, err)
		}
		return nil
	}
	value, err := proto.Marshal(word)
	if err != nil {
		return fmt.Errorf("encode the word about %s: %w", about, err)
	}
	if _, err := bucket.Put(ctx, key, value); err != nil {
		return fmt.Errorf("write the word about %s: %w", about, err)
	}
	return nil
}

// Read returns the word about a region that is in the bucket of the region whose bus
// js is: nil if there is none, or it no longer holds at now.
func Read(ctx context.Context, js jetstream.JetStream, about string, now time.Time) (*siroccov1.RegionWord, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	bucket, err := js.KeyValue(ctx, subject.BucketRegions)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", subject.BucketRegions, err)
	}
	entry, err := bucket.Get(ctx, subject.RegionKey(subject.RegionWord, about))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil //nolint:nilnil // no word is an answer
	}
	if err != nil {
		return nil, fmt.Errorf("read the word about %s: %w", about, err)
	}
	word := &siroccov1.RegionWord{}
	if err := proto.Unmarshal(entry.Value(), word); err != nil {
		return nil, fmt.Errorf("decode the word about %s: %w", about, err)
	}
	if !word.GetUntil().AsTime().After(now) {
		return nil, nil //nolint:nilnil // no word is an answer
	}
	return word, nil
}
