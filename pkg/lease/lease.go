// Package lease lets one of several processes do what only one may do at a time.
//
// Safety: a lease is an entry of a bucket whose entries expire. It is made only
// where there is none, renewed by compare-and-swap, and what is done under it is
// stopped when a renewal is refused, or none has been confirmed for as long as
// an entry lives, counted from before the renewal was sent. That is as good as
// clocks run at the same speed and as work stops when it is told to; what must
// hold without that writes its own state by compare-and-swap too.
//
// Liveness: a holder that ends gives the lease back, and another has it within
// a third of an entry's life. One that dies is followed after an entry's life at
// most, and a third of it.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// Lease is something that one holder at a time may do.
type Lease struct {
	js          jetstream.JetStream
	key, holder string
	log         *slog.Logger
}

// New names a lease and who would hold it. The holder's name is shown to people;
// it need not be unique. It does no I/O.
func New(js jetstream.JetStream, key, holder string, log *slog.Logger) *Lease {
	return &Lease{js: js, key: key, holder: holder, log: log}
}

// Run calls work each time the lease is got, with a context that ends when it is
// lost, until ctx ends. Work that returns before gives the lease back, and is
// called again when it is got again. The error is that of the bucket's absence.
//
// Concurrency: Run owns one goroutine, for work, and waits for it before it tries
// to get the lease again or returns.
func (l *Lease) Run(ctx context.Context, work func(ctx context.Context)) error {
	kv, err := l.js.KeyValue(ctx, subject.BucketLeases)
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", subject.BucketLeases, err)
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return fmt.Errorf("look at bucket %s: %w", subject.BucketLeases, err)
	}
	ttl := status.TTL()
	if ttl <= 0 {
		return fmt.Errorf("bucket %s: its entries do not expire", subject.BucketLeases)
	}
	beat := time.NewTicker(ttl / 3)
	defer beat.Stop()
	for ctx.Err() == nil {
		asked := time.Now()
		revision, err := l.try(ctx, ttl, func(ctx context.Context) (uint64, error) {
			return kv.Create(ctx, l.key, []byte(l.holder))
		})
		if err == nil {
			l.hold(ctx, kv, held{revision: revision, since: asked, ttl: ttl}, beat.C, work)
			// Others have their turn: who gives a lease back does not take it at once.
		} else if !bus.IsConflict(err) && ctx.Err() == nil {
			l.log.Debug("lease not got", "lease", l.key, "err", err)
		}
		select {
		case <-beat.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// held is a lease that was got.
type held struct {
	revision uint64
	// since is before the last renewal that was confirmed, or the creation.
	since time.Time
	ttl   time.Duration
}

// try bounds what asks the bus, so that a bus that is away does not keep the
// holder from noticing.
func (l *Lease) try(ctx context.Context, ttl time.Duration, ask func(context.Context) (uint64, error)) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, ttl/3)
	defer cancel()
	return ask(ctx)
}

func (l *Lease) hold(ctx context.Context, kv jetstream.KeyValue, h held, beat <-chan time.Time, work func(context.Context)) {
	l.log.Info("lease got", "lease", l.key, "holder", l.holder)
	working, stop := context.WithCancel(ctx)
	var group sync.WaitGroup
	done := make(chan struct{})
	group.Go(func() {
		defer close(done)
		work(working)
	})
	kept := l.renew(working, kv, &h, beat, done)
	stop()
	group.Wait()
	if !kept {
		l.log.Warn("lease lost", "lease", l.key, "holder", l.holder)
		return
	}
	// Also when ctx has ended: the next one need not wait for the entry to expire.
	_, err := l.try(context.WithoutCancel(ctx), h.ttl, func(ctx context.Context) (uint64, error) {
		return 0, kv.Delete(ctx, l.key, jetstream.LastRevision(h.revision))
	})
	if err != nil {
		l.log.Info("lease not given back: it expires", "lease", l.key, "err", err)
	}
}

// renew keeps the lease until ctx ends or the work is done, and then returns
// true; false when the lease is lost.
func (l *Lease) renew(ctx context.Context, kv jetstream.KeyValue, h *held, beat <-chan time.Time, done <-chan struct{}) bool {
	for {
		expired := time.NewTimer(time.Until(h.since.Add(h.ttl)))
		select {
		case <-ctx.Done():
		case <-done:
		case <-expired.C:
			return false
		case <-beat:
			asked := time.Now()
			revision, err := l.try(ctx, h.ttl, func(ctx context.Context) (uint64, error) {
				return kv.Update(ctx, l.key, []byte(l.holder), h.revision)
			})
			expired.Stop()
			switch {
			case err == nil:
				h.revision, h.since = revision, asked
			case bus.IsConflict(err):
				// Also after a renewal whose answer got lost: then the lease expires,
				// and is got anew.
				return false
			}
			continue
		}
		expired.Stop()
		return true
	}
}

// Holder returns who holds a lease, "" for nobody.
func Holder(ctx context.Context, js jetstream.JetStream, key string) (string, error) {
	kv, err := js.KeyValue(ctx, subject.BucketLeases)
	if err != nil {
		return "", fmt.Errorf("open bucket %s: %w", subject.BucketLeases, err)
	}
	entry, err := kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read lease %s: %w", key, err)
	}
	return string(entry.Value()), nil
}
