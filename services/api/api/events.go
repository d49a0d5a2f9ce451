package api

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/cursor"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Pieces that one watcher may have in memory, for each region. A watcher that does
// not take them stops its own consumers only.
const (
	watchMessages  = 256
	watchHeartbeat = 5 * time.Second
	watchRetry     = 250 * time.Millisecond
)

// given is an event on its way to a watcher.
type given struct {
	event *siroccov1.SandboxEvent
	name  string
}

// watch calls send with each event of the tenant, those of each region in order and
// without a gap, until ctx ends or send fails. started is called once, when nothing
// that happens from then on will be missed. Losing a bus only pauses what comes from
// there; of another region's, the watcher is told.
//
// Concurrency: one goroutine follows each region; watch waits for all. What a watcher
// has not taken holds up its own followers only.
func (a *API) watch(ctx context.Context, c caller, req *siroccov1.WatchSandboxesRequest, started func() error, send func(*siroccov1.SandboxEvent, string) error) error {
	filter, err := a.eventFilter(ctx, c, req.GetId())
	if err != nil {
		return err
	}
	at, err := a.begin(ctx, req)
	if err != nil {
		return err
	}
	sources, err := a.sources()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	events, begun := make(chan given), make(chan struct{})
	var followers sync.WaitGroup
	defer followers.Wait()
	defer cancel()
	for i, s := range sources {
		once := func() {}
		if i == 0 {
			once = sync.OnceFunc(func() { close(begun) })
		}
		position := at[s.region]
		followers.Go(func() { a.keepFollowing(ctx, s, filter, position, once, events) })
	}
	select {
	case <-begun:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := started(); err != nil {
		return err
	}
	return a.hand(ctx, at, events, send)
}

// hand passes on what the followers bring, and tells of regions that go and come back.
func (a *API) hand(ctx context.Context, at cursor.Cursor, events <-chan given, send func(*siroccov1.SandboxEvent, string) error) error {
	look := time.NewTicker(noticeEvery)
	defer look.Stop()
	away := map[string]bool{}
	for {
		for _, notice := range a.notices(away) {
			if err := send(a.locateEvent(notice.event, at), notice.name); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		case got := <-events:
			at[got.event.GetRegion()] = cursor.Position{Sequence: got.event.GetRegionSequence()}
			if err := send(a.locateEvent(got.event, at), got.name); err != nil {
				return err
			}
		}
	}
}

// keepFollowing follows a region's events until ctx ends.
func (a *API) keepFollowing(ctx context.Context, s source, filter string, at cursor.Position, begun func(), events chan<- given) {
	for ctx.Err() == nil {
		if s.region != a.env.Region && bus.Await(ctx, s.js.Conn()) != nil {
			return
		}
		next, err := a.follow(ctx, s, filter, at, begun, events)
		at = next
		a.log.DebugContext(ctx, "watch begins again", "of", s.region, "from", at.Sequence, "err", err)
		select {
		case <-time.After(watchRetry):
		case <-ctx.Done():
		}
	}
}

// follow hands on a region's events until the consumer breaks. next is where to go on.
func (a *API) follow(ctx context.Context, s source, filter string, at cursor.Position, begun func(), events chan<- given) (next cursor.Position, err error) {
	consumer, err := s.js.OrderedConsumer(ctx, subject.StreamEvents, consumerFrom(filter, at, time.Minute))
	if err != nil {
		return at, fmt.Errorf("follow events: %w", err)
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(watchMessages), jetstream.PullHeartbeat(watchHeartbeat))
	if err != nil {
		return at, fmt.Errorf("follow events: %w", err)
	}
	defer context.AfterFunc(ctx, messages.Stop)()
	defer messages.Stop()
	begun()
	for {
		msg, err := messages.Next()
		if err != nil {
			return at, err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return at, err
		}
		at = cursor.Position{Sequence: meta.Sequence.Stream}
		event, ok := eventOf(msg, meta, s.region)
		if !ok || a.toldElsewhere(event) {
			continue
		}
		select {
		case events <- given{event, msg.Headers().Get(subject.HeaderEvent)}:
		case <-ctx.Done():
			return at, ctx.Err()
		}
	}
}

// consumerFrom is a consumer of what comes behind a position.
func consumerFrom(filter string, at cursor.Position, idle time.Duration) jetstream.OrderedConsumerConfig {
	cfg := jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{filter}, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: at.Sequence + 1,
		InactiveThreshold: idle,
	}
	if !at.Since.IsZero() {
		cfg.DeliverPolicy, cfg.OptStartSeq, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, 0, &at.Since
	}
	return cfg
}

// eventOf decodes a message of the event stream. What is no event for people,
// such as the deletion of a record after its retention, is left out.
func eventOf(msg jetstream.Msg, meta *jetstream.MsgMetadata, region string) (*siroccov1.SandboxEvent, bool) {
	_, noun, key, err := subject.ParseEvent(msg.Subject())
	if err != nil || msg.Headers().Get("KV-Operation") != "" || msg.Headers().Get("Nats-Marker-Reason") != "" {
		return nil, false
	}
	event := &siroccov1.SandboxEvent{Region: region, RegionSequence: meta.Sequence.Stream, At: timestamppb.New(meta.Timestamp)}
	if noun == subject.EventCommand {
		event.Rejected = &siroccov1.RejectedCommand{}
		if proto.Unmarshal(msg.Data(), event.Rejected) != nil {
			event.Rejected = &siroccov1.RejectedCommand{Key: key, Code: string(fault.Internal), Message: "the command was refused"}
		}
		return event, true
	}
	event.Sandbox = &siroccov1.Sandbox{}
	if proto.Unmarshal(msg.Data(), event.Sandbox) != nil {
		return nil, false
	}
	event.Sandbox.Revision = sourceSequence(msg.Headers().Get(headerSource))
	return event, true
}

// headerSource is where the server notes from which stream, and which sequence
// of it, a sourced message came.
const headerSource = "Nats-Stream-Source"

// sourceSequence returns the sequence in the stream that a message came from:
// the second word of the header. It is the record's revision.
func sourceSequence(header string) uint64 {
	words := strings.Fields(header)
	if len(words) < 2 {
		return 0
	}
	n, err := strconv.ParseUint(words[1], 10, 64)
	if err != nil {
		return 0
	}
	return n
}
