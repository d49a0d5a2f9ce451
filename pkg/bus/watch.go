package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// watchPause is how long Watch waits before it tries again what has failed.
const watchPause = 250 * time.Millisecond

// Watch follows the keys of a bucket that match a pattern until ctx ends, and
// then returns nil. For each entry it calls see; with nil once everything that
// was there has been seen. It starts anew when the bus was lost and found
// again, since a server that was restarted has forgotten its watchers: begin is
// called each time it starts, and everything that is there is seen again.
//
// begin and see are called one at a time.
func Watch(ctx context.Context, js jetstream.JetStream, bucket, pattern string, begin func(), see func(jetstream.KeyValueEntry)) error {
	found := js.Conn().StatusChanged(nats.CONNECTED)
	defer js.Conn().RemoveStatusListener(found)
	for ctx.Err() == nil {
		if err := watchOnce(ctx, js, bucket, pattern, found, begin, see); err != nil && ctx.Err() == nil {
			select {
			case <-time.After(watchPause):
			case <-found:
			case <-ctx.Done():
			}
		}
	}
	return nil
}

// What is there comes first, by a watch for the newest revision of each key; then
// what follows, by a watch for everything. For the first kind the server looks at
// all keys whenever one is purged, to know how much is left for the watch.
func watchOnce(ctx context.Context, js jetstream.JetStream, bucket, pattern string, found <-chan nats.Status, begin func(), see func(jetstream.KeyValueEntry)) error {
	kv, err := js.KeyValue(ctx, bucket)
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return fmt.Errorf("look at bucket %s: %w", bucket, err)
	}
	var seen uint64
	if s, ok := status.(*jetstream.KeyValueBucketStatus); ok {
		seen = s.StreamInfo().State.LastSeq
	}
	keys, err := kv.Watch(ctx, pattern)
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", bucket, err)
	}
	begin()
	caughtUp := false
	err = follow(ctx, keys, found, func(entry jetstream.KeyValueEntry) bool {
		if entry != nil {
			seen = max(seen, entry.Revision())
		}
		see(entry)
		caughtUp = entry == nil
		return !caughtUp
	})
	if err != nil || !caughtUp {
		return err
	}
	changes, err := kv.Watch(ctx, pattern, jetstream.ResumeFromRevision(seen+1))
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", bucket, err)
	}
	return follow(ctx, changes, found, func(entry jetstream.KeyValueEntry) bool {
		if entry != nil {
			see(entry)
		}
		return true
	})
}

// follow hands the entries of a watch to see until that returns false, the bus was
// found again, or ctx ends; then it ends the watch.
func follow(ctx context.Context, watcher jetstream.KeyWatcher, found <-chan nats.Status, see func(jetstream.KeyValueEntry) bool) error {
	defer func() { _ = watcher.Stop() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-found:
			return nil
		case entry, ok := <-watcher.Updates():
			if !ok {
				return errors.New("the watch ended")
			}
			if !see(entry) {
				return nil
			}
		}
	}
}
