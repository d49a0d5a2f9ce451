// Package topology holds the streams and buckets of a region as data. The api
// ensures them at start (Ensure); every other service binds to them and fails
// loudly when one is missing.
package topology

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// Options are what an operator may choose.
type Options struct {
	// Replicas of every stream: 1 on one machine, 3 in a cluster. Zero means 1.
	Replicas int
	// EventAge is how long events are kept; zero means 7 days.
	EventAge time.Duration
	// EventBytes is how much of them at most; zero means 8 GiB.
	EventBytes int64
}

// RecordHistory is how many revisions of a record are kept: as many as the
// server allows. Quick writes may run ahead of the source of the event stream;
// with one revision the first of two would never become an event (measured:
// 12 % lost with 1, none with 16). A sandbox has about six in its life, so more
// costs nothing.
const RecordHistory = 64

// EvacuationHistory is how many steps of an evacuation can be read again afterwards:
// as many as the server allows.
const EvacuationHistory = 64

// NodeTTL is after what silence a node counts as away. Agents write their
// entry every NodeBeat, so that two may be lost.
const (
	NodeBeat = 3 * time.Second
	NodeTTL  = 10 * time.Second
)

// LeaseTTL is how long a lease lives that nobody renews: for so long nobody does
// what a process that died did alone.
const LeaseTTL = 6 * time.Second

// FenceTTL is how long nobody takes over the guarded sandboxes of a node that does not
// renew its entry: longer than guard.Hold, for which the node goes on without.
const FenceTTL = 15 * time.Second

// GuardTTL is how long it is remembered who guards a sandbox, and that it was taken over:
// longer than any copy of it that does not know so may live.
const GuardTTL = 7 * 24 * time.Hour

// ForgottenTTL is how long the bus remembers that a record was deleted: each takes room
// for so long. Views that listen are told at once, and one that comes back takes what is
// there for all there is, so it must only outlast a write that is under way. A bucket's
// server remembers every deletion for as long as this at least, whatever it was told.
const ForgottenTTL = time.Minute

// IdempotencyTTL is how long an idempotency key holds.
const IdempotencyTTL = 24 * time.Hour

// Streams returns the streams of a region, without those of the buckets.
// The event stream comes after what it sources.
func Streams(o Options) []jetstream.StreamConfig {
	o = o.withDefaults()
	records := subject.StreamOf(subject.BucketSandboxes)
	return []jetstream.StreamConfig{
		{
			Name: subject.StreamCommands, Description: "Commands, until a scheduler has carried them out",
			Subjects: []string{subject.All("cmd")}, Retention: jetstream.WorkQueuePolicy,
			Storage: jetstream.FileStorage, Replicas: o.Replicas, Discard: jetstream.DiscardNew,
			MaxBytes: 4 << 30, Duplicates: 2 * time.Minute, AllowDirect: true,
		},
		{
			Name: subject.StreamDeadLetters, Description: "Commands that can never work, with the reason in headers",
			Subjects: []string{subject.All("dlq")}, Storage: jetstream.FileStorage, Replicas: o.Replicas,
			MaxAge: 30 * 24 * time.Hour, MaxBytes: 1 << 30, Discard: jetstream.DiscardOld, AllowDirect: true,
		},
		{
			Name: subject.StreamEvents, Description: "Every revision of every record, and every refused command",
			Sources: []*jetstream.StreamSource{
				{Name: records, SubjectTransforms: []jetstream.SubjectTransformConfig{{
					Source:      "$KV." + subject.BucketSandboxes + ".*.*",
					Destination: "sirocco.evt.{{wildcard(1)}}.sandbox.{{wildcard(2)}}",
				}}},
				{Name: subject.StreamDeadLetters, SubjectTransforms: []jetstream.SubjectTransformConfig{{
					Source:      "sirocco.dlq.*.*.*.*",
					Destination: "sirocco.evt.{{wildcard(3)}}.command.{{wildcard(4)}}",
				}}},
			},
			// It can be made again from what it sources, and after a crash it is: the
			// server goes on behind the last event that it finds on the disk.
			PersistMode: o.derived(),
			// Those who subscribe without JetStream see the events too.
			RePublish: &jetstream.RePublish{Source: subject.All("evt"), Destination: subject.All("evt")},
			Storage:   jetstream.FileStorage, Replicas: o.Replicas, Discard: jetstream.DiscardOld,
			MaxAge: o.EventAge, MaxBytes: o.EventBytes, AllowDirect: true,
		},
	}
}

// Buckets returns the key-value buckets of a region.
func Buckets(o Options) []jetstream.KeyValueConfig {
	o = o.withDefaults()
	bucket := func(name, description string, history uint8, ttl, marker time.Duration) jetstream.KeyValueConfig {
		return jetstream.KeyValueConfig{
			Bucket: name, Description: description, History: history, TTL: ttl, LimitMarkerTTL: marker,
			Storage: jetstream.FileStorage, Replicas: o.Replicas,
		}
	}
	return []jetstream.KeyValueConfig{
		bucket(subject.BucketSandboxes, "The record of each sandbox", RecordHistory, 0, ForgottenTTL),
		bucket(subject.BucketIdempotency, "Which sandbox an idempotency key made", 1, IdempotencyTTL, time.Minute),
		bucket(subject.BucketNames, "Names of sandboxes that have not ended", 1, 0, time.Minute),
		bucket(subject.BucketPorts, "Public TCP ports in use", 1, 0, time.Minute),
		bucket(subject.BucketNodeOrders, "What operators want of nodes", 1, 0, time.Minute),
		bucket(subject.BucketPools, "Warm pools that operators declared", 1, 0, time.Minute),
		bucket(subject.BucketRegions, "Regions: what each says of itself, weights, and people's words about them", 1, 0, time.Minute),
		bucket(subject.BucketQuotas, "Limits of tenants that have their own", 1, 0, time.Minute),
		bucket(subject.BucketEvacuations, "Regions and nodes that are emptied, and how far", EvacuationHistory, 0, time.Minute),
		bucket(subject.BucketFaults, "Faults that were asked for", 1, 0, time.Minute),
		bucket(subject.BucketKeys, "API keys, hashed", 1, 0, time.Minute),
		bucket(subject.BucketLeases, "Who alone does something now", 1, LeaseTTL, time.Minute),
		bucket(subject.BucketGuards, "Who keeps checkpoints of other regions' sandboxes", 1, GuardTTL, time.Minute),
		bucket(subject.BucketFences, "Nodes of other regions whose sandboxes are guarded here", 1, FenceTTL, time.Minute),
		bucket(subject.BucketCloudflare, "What Cloudflare shall hold, and holds", 1, 0, time.Minute),
	}
}

// heartbeats is the bucket of the nodes, as the stream that it is: what it holds
// is old after NodeTTL, so it is not synced to disk with every heartbeat, which a
// bucket can't be told.
func heartbeats(o Options) jetstream.StreamConfig {
	o = o.withDefaults()
	return jetstream.StreamConfig{
		Name: subject.StreamOf(subject.BucketNodes), Description: "What living nodes say of themselves",
		Subjects: []string{"$KV." + subject.BucketNodes + ".>"}, MaxMsgsPerSubject: 1, MaxAge: NodeTTL,
		Storage: jetstream.FileStorage, Replicas: o.Replicas, PersistMode: o.derived(), Duplicates: NodeTTL,
		Discard: jetstream.DiscardNew, AllowRollup: true, DenyDelete: true, AllowDirect: true,
		// The marker tells watchers of a node that went silent.
		AllowMsgTTL: true, SubjectDeleteMarkerTTL: time.Minute,
	}
}

// derived is how streams are stored that are made again from others. The server
// has this for streams of one replica only.
func (o Options) derived() jetstream.PersistModeType {
	if o.Replicas > 1 {
		return jetstream.DefaultPersistMode
	}
	return jetstream.AsyncPersistMode
}

// ensureStream makes a stream or brings it up to date. How it is stored stays as
// it was made, with as many replicas as that allows: the server changes neither.
func ensureStream(ctx context.Context, js jetstream.JetStream, cfg jetstream.StreamConfig) error {
	if have, err := js.Stream(ctx, cfg.Name); err == nil {
		cfg.PersistMode = have.CachedInfo().Config.PersistMode
		if cfg.PersistMode == jetstream.AsyncPersistMode {
			cfg.Replicas = 1
		}
	}
	_, err := js.CreateOrUpdateStream(ctx, cfg)
	return err
}

// Consumers returns the shared consumers by stream.
func Consumers() map[string]jetstream.ConsumerConfig {
	return map[string]jetstream.ConsumerConfig{
		subject.StreamCommands: {
			Durable: subject.ConsumerScheduler, Description: "All schedulers of the region",
			AckPolicy: jetstream.AckExplicitPolicy, DeliverPolicy: jetstream.DeliverAllPolicy,
			// Longer than the longest step between two in-progress marks.
			AckWait: 30 * time.Second,
			// How far schedulers see: within it, tenants take turns. Beyond it, a tenant
			// waits for those that came before it.
			MaxAckPending: 16384,
		},
	}
}

// Elections is how long Ensure waits for servers that answer that they can't just
// now, or not at all: those of a cluster that starts have to find each other and
// choose a leader first, and another one for each stream.
const Elections = time.Minute

// Ensure makes what is missing and brings what exists up to date. It may run
// in several processes at once, and again at any time. Where the servers can't
// reserve what the streams may grow to, the error says what to do about it.
func Ensure(ctx context.Context, js jetstream.JetStream, o Options) error {
	err := ensure(ctx, js, o)
	for patience := time.Now().Add(Elections); leaderless(ctx, err) && time.Now().Before(patience); {
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
		err = ensure(ctx, js, o)
	}
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == storageExceeded {
		return fmt.Errorf("the bus has too little disk for the %.1f GiB that its streams reserve: free some, raise max_file_store of the NATS servers, or lower --event-bytes (now %.1f GiB): %w",
			gib(reserved(o)), gib(o.withDefaults().EventBytes), err)
	}
	return err
}

// leaderless says whether nobody has answered, or nobody could just now.
func leaderless(ctx context.Context, err error) bool {
	return ctx.Err() == nil && (bus.Transient(err) || errors.Is(err, context.DeadlineExceeded))
}

// storageExceeded is the server's JSStorageResourcesExceededErr, for which the
// client has no name.
const storageExceeded jetstream.ErrorCode = 10047

// reserved is how many bytes the streams may grow to.
func reserved(o Options) int64 {
	var n int64
	for _, cfg := range Streams(o) {
		n += cfg.MaxBytes
	}
	return n
}

func gib(n int64) float64 { return float64(n) / (1 << 30) }

func ensure(ctx context.Context, js jetstream.JetStream, o Options) error {
	for _, cfg := range Buckets(o) {
		if _, err := js.CreateOrUpdateKeyValue(ctx, cfg); err != nil {
			return fmt.Errorf("ensure bucket %s: %w", cfg.Bucket, err)
		}
	}
	for _, cfg := range append([]jetstream.StreamConfig{heartbeats(o)}, Streams(o)...) {
		if err := ensureStream(ctx, js, cfg); err != nil {
			return fmt.Errorf("ensure stream %s: %w", cfg.Name, err)
		}
	}
	for stream, cfg := range Consumers() {
		if _, err := js.CreateOrUpdateConsumer(ctx, stream, cfg); err != nil {
			return fmt.Errorf("ensure consumer %s of %s: %w", cfg.Durable, stream, err)
		}
	}
	_, err := js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{
		Bucket: subject.BucketImages, Description: "Imported images", Storage: jetstream.FileStorage, Replicas: o.withDefaults().Replicas,
	})
	if err != nil {
		return fmt.Errorf("ensure object store %s: %w", subject.BucketImages, err)
	}
	return nil
}

// Wait returns once everything exists, which is when some api has ensured it.
// It gives up when ctx ends, naming what is missing.
func Wait(ctx context.Context, js jetstream.JetStream) error {
	for {
		err := missing(ctx, js)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the bus is not set up (is an api running?): %w", errors.Join(err, ctx.Err()))
		}
	}
}

// missing says what does not exist yet. It asks for the names of all streams at
// once: with hundreds of services that start together, a question for each would
// keep them waiting.
func missing(ctx context.Context, js jetstream.JetStream) error {
	have := map[string]bool{}
	names := js.StreamNames(ctx)
	for name := range names.Name() {
		have[name] = true
	}
	if err := names.Err(); err != nil {
		return fmt.Errorf("list the streams: %w", err)
	}
	want := []string{heartbeats(Options{}).Name, "OBJ_" + subject.BucketImages}
	for _, cfg := range Buckets(Options{}) {
		want = append(want, subject.StreamOf(cfg.Bucket))
	}
	for _, cfg := range Streams(Options{}) {
		want = append(want, cfg.Name)
	}
	for _, name := range want {
		if !have[name] {
			return fmt.Errorf("stream %s: %w", name, jetstream.ErrStreamNotFound)
		}
	}
	for stream, cfg := range Consumers() {
		if _, err := js.Consumer(ctx, stream, cfg.Durable); err != nil {
			return fmt.Errorf("consumer %s: %w", cfg.Durable, err)
		}
	}
	return nil
}

func (o Options) withDefaults() Options {
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	if o.EventAge == 0 {
		o.EventAge = 7 * 24 * time.Hour
	}
	if o.EventBytes == 0 {
		o.EventBytes = 8 << 30
	}
	return o
}
