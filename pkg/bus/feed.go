package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// What the server sends between the entries: that it is there, when there was nothing
// else to send, and a question that is answered once all before it was taken.
const (
	headerStatus       = "Status"
	headerLastConsumer = "Nats-Last-Consumer"
	headerStalled      = "Nats-Consumer-Stalled"
	statusControl      = "100"
)

// forgetLimit bounds how long a feed that is over keeps the next one waiting.
const forgetLimit = time.Second

// errBroken says that a feed ended, or has lost something: whoever needs the rest opens
// another one behind the last entry that came.
var errBroken = errors.New("the feed from the bus broke off")

// bucketFeed says what a feed is of.
type bucketFeed struct {
	js              jetstream.JetStream
	bucket, pattern string
	// beat is how often the server is heard from. Where it is not for twice as long, the
	// feed has broken off.
	beat time.Duration
}

// feed is entries of a bucket, in the order of their revisions.
//
// The library's own, behind jetstream.KeyValue.Watch, is deaf for 10 to 20 s after it lost
// its server, and where nothing had come on it before, it then goes on from the bucket's
// first revision.
type feed struct {
	bucketFeed
	consumer string
	// there is how many entries there were when the feed began.
	there uint64
	// received counts the entries that came.
	received uint64
	sub      *nats.Subscription
	msgs     chan *nats.Msg
	closed   chan struct{}
}

// open begins a feed of the newest revision of each key, or, with newest false, of all
// revisions behind a given one. Whoever opens a feed closes it.
func (b bucketFeed) open(ctx context.Context, newest bool, after uint64) (*feed, error) {
	nc := b.js.Conn()
	f := &feed{bucketFeed: b, msgs: make(chan *nats.Msg, 256), closed: make(chan struct{})}
	inbox := nc.NewInbox()
	sub, err := nc.Subscribe(inbox, func(m *nats.Msg) {
		select {
		case f.msgs <- m:
		case <-f.closed:
		}
	})
	if err != nil {
		return nil, fmt.Errorf("watch bucket %s: %w", b.bucket, err)
	}
	f.sub = sub
	cfg := jetstream.ConsumerConfig{
		DeliverSubject: inbox, FilterSubject: b.subject() + b.pattern,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: after + 1,
		AckPolicy: jetstream.AckNonePolicy, FlowControl: true, IdleHeartbeat: b.beat,
		Replicas: 1, MemoryStorage: true,
	}
	if newest {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverLastPerSubjectPolicy, 0
	}
	// The servers may give the consumer to one that is gone and that they still count on:
	// it is not waited for.
	ctx, cancel := context.WithTimeout(ctx, 2*b.beat)
	defer cancel()
	consumer, err := b.js.CreatePushConsumer(ctx, b.stream(), cfg)
	if err != nil {
		f.close()
		return nil, fmt.Errorf("watch bucket %s: %w", b.bucket, err)
	}
	info := consumer.CachedInfo()
	f.consumer, f.there = info.Name, info.NumPending
	return f, nil
}

func (b bucketFeed) stream() string  { return subject.StreamOf(b.bucket) }
func (b bucketFeed) subject() string { return "$KV." + b.bucket + "." }

// close ends the feed. The server forgets it after 5 s in which nobody listened.
func (f *feed) close() {
	close(f.closed)
	_ = f.sub.Unsubscribe()
}

// forget closes the feed and has the server forget it at once, if it answers soon.
func (f *feed) forget(ctx context.Context) {
	f.close()
	ctx, cancel := context.WithTimeout(ctx, forgetLimit)
	defer cancel()
	_ = f.js.DeleteConsumer(ctx, f.stream(), f.consumer)
}

// follow hands the entries to see until that returns false, the bus was found again, or
// ctx ends, and then returns nil. The error is errBroken.
func (f *feed) follow(ctx context.Context, found <-chan nats.Status, see func(*entry) bool) error {
	silence := time.NewTimer(2 * f.beat)
	defer silence.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-found:
			return nil
		case <-silence.C:
			return fmt.Errorf("%w: nothing was heard for %v", errBroken, 2*f.beat)
		case m := <-f.msgs:
			e, err := f.take(m)
			if err != nil || e != nil && !see(e) {
				return err
			}
			silence.Reset(2 * f.beat)
		}
	}
}

// take makes an entry of a message, or nil of one that is for the feed itself.
func (f *feed) take(m *nats.Msg) (*entry, error) {
	if status := m.Header.Get(headerStatus); status != "" && len(m.Data) == 0 {
		if status != statusControl {
			return nil, fmt.Errorf("%w: %s %s", errBroken, status, m.Header.Get("Description"))
		}
		if stalled := m.Header.Get(headerStalled); stalled != "" {
			return nil, f.js.Conn().Publish(stalled, nil)
		}
		if m.Reply != "" {
			return nil, f.js.Conn().Publish(m.Reply, nil)
		}
		if last := m.Header.Get(headerLastConsumer); last != "" {
			if n, err := strconv.ParseUint(last, 10, 64); err != nil || n > f.received {
				return nil, fmt.Errorf("%w: %d of %s entries came", errBroken, f.received, last)
			}
		}
		return nil, nil
	}
	meta, err := m.Metadata()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	f.received++
	if meta.Sequence.Consumer != f.received {
		return nil, fmt.Errorf("%w: entry %d came instead of %d", errBroken, meta.Sequence.Consumer, f.received)
	}
	return &entry{msg: m, meta: meta, bucket: f.bucket, key: m.Subject[len(f.subject()):]}, nil
}

// entry is a revision of a key, as jetstream.KeyValueEntry wants it.
type entry struct {
	msg         *nats.Msg
	meta        *nats.MsgMetadata
	bucket, key string
}

func (e *entry) Bucket() string     { return e.bucket }
func (e *entry) Key() string        { return e.key }
func (e *entry) Value() []byte      { return e.msg.Data }
func (e *entry) Revision() uint64   { return e.meta.Sequence.Stream }
func (e *entry) Created() time.Time { return e.meta.Timestamp }
func (e *entry) Delta() uint64      { return e.meta.NumPending }

// Operation says whether the key was written, deleted by a client, or by the server
// because of its age.
func (e *entry) Operation() jetstream.KeyValueOp {
	switch e.msg.Header.Get("KV-Operation") {
	case "DEL":
		return jetstream.KeyValueDelete
	case "PURGE":
		return jetstream.KeyValuePurge
	}
	switch e.msg.Header.Get(jetstream.MarkerReasonHeader) {
	case "MaxAge", "Purge":
		return jetstream.KeyValuePurge
	case "Remove":
		return jetstream.KeyValueDelete
	}
	return jetstream.KeyValuePut
}
