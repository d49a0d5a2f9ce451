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

func watchOnce(ctx context.Context, js jetstream.JetStream, bucket, pattern string, found <-chan nats.Status, begin func(), see func(jetstream.KeyValueEntry)) error {
	kv, err := js.KeyValue(ctx, bucket)
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	watcher, err := kv.Watch(ctx, pattern)
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", bucket, err)
	}
	defer func() { _ = watcher.Stop() }()
	begin()
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
			see(entry)
		}
	}
}
