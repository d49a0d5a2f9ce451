package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// watchPause is how long Watch waits before it tries again what has failed.
	watchPause = 250 * time.Millisecond
	// clusterBeat is how often a watcher hears from the server of a cluster that feeds
	// it. After twice as long it has itself fed by another: the server may be gone while
	// the one that the connection is to is not.
	clusterBeat = time.Second
	// beat is the same where there is one server only, whose end ends the connection too.
	beat = 5 * time.Second
)

// Watch follows the keys of a bucket that match a pattern until ctx ends, and
// then returns nil. For each entry it calls see; with nil once everything that
// was there has been seen. It starts anew when the bus was lost and found
// again, since a server that was restarted has forgotten its watchers: begin is
// called each time it starts, and everything that is there is seen again. Where
// the bus is a cluster and only the server is lost that fed the watch, Watch goes
// on with what comes next, 2 s later.
//
// begin and see are called one at a time.
func Watch(ctx context.Context, js jetstream.JetStream, bucket, pattern string, begin func(), see func(jetstream.KeyValueEntry)) error {
	found := js.Conn().StatusChanged(nats.CONNECTED)
	defer js.Conn().RemoveStatusListener(found)
	for ctx.Err() == nil {
		if err := watchOnce(ctx, js, bucket, pattern, found, begin, see); err != nil {
			pause(ctx, found)
		}
	}
	return nil
}

// pause waits before another try. It returns false where the bus was found again
// meanwhile, or ctx has ended.
func pause(ctx context.Context, found <-chan nats.Status) bool {
	select {
	case <-time.After(watchPause):
		return true
	case <-found:
	case <-ctx.Done():
	}
	return false
}

// What is there comes first, by a feed of the newest revision of each key; then what
// follows, by a feed of everything. For the first kind the server looks at all keys
// whenever one is purged, to know how much is left for the feed.
func watchOnce(ctx context.Context, js jetstream.JetStream, bucket, pattern string, found <-chan nats.Status, begin func(), see func(jetstream.KeyValueEntry)) error {
	b := bucketFeed{js: js, bucket: bucket, pattern: pattern, beat: beat}
	stream, err := js.Stream(ctx, b.stream())
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	if stream.CachedInfo().Config.Replicas > 1 {
		b.beat = clusterBeat
	}
	seen, caughtUp, err := watchNewest(ctx, b, found, begin, see)
	if err != nil || !caughtUp {
		return err
	}
	for js.Conn().IsConnected() {
		changes, err := b.open(ctx, false, seen)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return err
		}
		if err != nil {
			// A stream without a leader, or a server that is gone: what was seen stays.
			if !pause(ctx, found) {
				return nil
			}
			continue
		}
		err = changes.follow(ctx, found, func(e *entry) bool {
			seen = e.Revision()
			see(e)
			return true
		})
		changes.close()
		if err == nil {
			return nil
		}
	}
	select {
	case <-found:
	case <-ctx.Done():
	}
	return nil
}

// watchNewest shows what is there. It returns the last revision that it showed, which
// is the last that there was: the feed may come from a server that has not heard of
// later ones yet, so that what a leader says is the last revision is no place to go on.
func watchNewest(ctx context.Context, b bucketFeed, found <-chan nats.Status, begin func(), see func(jetstream.KeyValueEntry)) (seen uint64, caughtUp bool, err error) {
	f, err := b.open(ctx, true, 0)
	if err != nil {
		return 0, false, err
	}
	defer f.forget(ctx)
	begin()
	caughtUp = f.there == 0
	if !caughtUp {
		err = f.follow(ctx, found, func(e *entry) bool {
			seen = max(seen, e.Revision())
			see(e)
			caughtUp = f.received >= f.there || e.Delta() == 0
			return !caughtUp
		})
	}
	if caughtUp {
		see(nil)
	}
	return seen, caughtUp, err
}
