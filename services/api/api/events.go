package api

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Pieces that one watcher may have in memory. A watcher that does not take
// them stops its own consumer only.
const (
	watchMessages  = 256
	watchHeartbeat = 5 * time.Second
	watchRetry     = 250 * time.Millisecond
)

// watch calls send with each event of the tenant, in order and without a gap,
// until ctx ends or send fails. started is called once, when nothing that
// happens from then on will be missed. Losing the bus only pauses it.
func (a *API) watch(ctx context.Context, c caller, req *siroccov1.WatchSandboxesRequest, started func() error, send func(*siroccov1.SandboxEvent, string) error) error {
	filter := subject.TenantEvents(c.tenant)
	if req.GetId() != "" {
		sb, err := a.find(ctx, c, "id", req.GetId())
		if err != nil {
			return err
		}
		filter = subject.Event(c.tenant, sb.GetId())
	}
	from := req.GetFromSequence()
	if from == 0 {
		last, err := a.lastEvent(ctx)
		if err != nil {
			return err
		}
		from = last + 1
	}
	for {
		next, err := a.follow(ctx, filter, from, started, send)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var broken *sendError
		if errors.As(err, &broken) {
			return broken.err
		}
		from, started = next, nil
		a.log.DebugContext(ctx, "watch begins again", "tenant", c.tenant, "from", from, "err", err)
		select {
		case <-time.After(watchRetry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sendError tells what the watcher's side failed with from what the bus did.
type sendError struct{ err error }

func (e *sendError) Error() string { return e.err.Error() }

func (a *API) lastEvent(ctx context.Context) (uint64, error) {
	stream, err := a.env.JS.Stream(ctx, subject.StreamEvents)
	if err != nil {
		return 0, away("open the event stream", err)
	}
	return stream.CachedInfo().State.LastSeq, nil
}

// follow is watch until the consumer breaks. next is where to go on.
func (a *API) follow(ctx context.Context, filter string, from uint64, started func() error, send func(*siroccov1.SandboxEvent, string) error) (next uint64, err error) {
	consumer, err := a.env.JS.OrderedConsumer(ctx, subject.StreamEvents, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{filter}, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return from, fmt.Errorf("follow events: %w", err)
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(watchMessages), jetstream.PullHeartbeat(watchHeartbeat))
	if err != nil {
		return from, fmt.Errorf("follow events: %w", err)
	}
	defer context.AfterFunc(ctx, messages.Stop)()
	defer messages.Stop()
	if started != nil {
		if err := started(); err != nil {
			return from, &sendError{err}
		}
	}
	for {
		msg, err := messages.Next()
		if err != nil {
			return from, err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return from, err
		}
		from = meta.Sequence.Stream + 1
		event, ok := eventOf(msg, meta)
		if !ok {
			continue
		}
		if err := send(event, msg.Headers().Get(subject.HeaderEvent)); err != nil {
			return from, &sendError{err}
		}
	}
}

// eventOf decodes a message of the event stream. What is no event for people,
// such as the deletion of a record after its retention, is left out.
func eventOf(msg jetstream.Msg, meta *jetstream.MsgMetadata) (*siroccov1.SandboxEvent, bool) {
	_, noun, key, err := subject.ParseEvent(msg.Subject())
	if err != nil || msg.Headers().Get("KV-Operation") != "" || msg.Headers().Get("Nats-Marker-Reason") != "" {
		return nil, false
	}
	event := &siroccov1.SandboxEvent{Sequence: meta.Sequence.Stream, At: timestamppb.New(meta.Timestamp)}
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
