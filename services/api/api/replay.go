package api

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

const (
	verbEvents = "events"
	replayName = subject.NounSandbox + "." + verbEvents
	// replayPage is how many events one ask is answered with at most.
	replayPage = 256
	// replayIdle is when the server forgets the consumer of an ask.
	replayIdle = 10 * time.Second
	// HeaderNext is, in the last message of a replay (which has no body), the
	// sequence to go on from.
	HeaderNext = "Sirocco-Next"
	// eventEnd is the HeaderEvent of that message.
	eventEnd = "end"
)

// replay answers an ask for events with one message for each, from
// from_sequence up to now, and then one with no body. It is how a tenant
// replays over the bus: consumers of its own would need rights in JetStream
// that can't be confined to a tenant.
func (s *asker) replay(ctx context.Context, c caller, req micro.Request) error {
	headers := nats.Header(req.Headers())
	ask := &siroccov1.WatchSandboxesRequest{}
	if err := bus.Decode(headers, req.Data(), ask); err != nil {
		return err
	}
	filter := subject.TenantEvents(c.tenant)
	if ask.GetId() != "" {
		sb, err := s.api.find(ctx, c, "id", ask.GetId())
		if err != nil {
			return err
		}
		filter = subject.Event(c.tenant, sb.GetId())
	}
	next := max(ask.GetFromSequence(), 1)
	consumer, err := s.api.env.JS.OrderedConsumer(ctx, subject.StreamEvents, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{filter}, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: next,
		// One ask is answered at once; its consumer must not outlive it for long.
		InactiveThreshold: replayIdle,
	})
	if err != nil {
		return away("read events", err)
	}
	batch, err := consumer.FetchNoWait(replayPage)
	if err != nil {
		return away("read events", err)
	}
	asJSON := bus.IsJSON(headers, req.Data())
	for msg := range batch.Messages() {
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("read event: %w", err)
		}
		next = meta.Sequence.Stream + 1
		event, ok := eventOf(msg, meta)
		if !ok {
			continue
		}
		body, kind, err := bus.Encode(event, asJSON)
		if err != nil {
			return fmt.Errorf("encode event: %w", err)
		}
		h := micro.Headers{subject.HeaderContentType: {kind}, subject.HeaderEvent: {msg.Headers().Get(subject.HeaderEvent)}}
		if err := req.Respond(body, micro.WithHeaders(h)); err != nil {
			return fmt.Errorf("answer with an event: %w", err)
		}
	}
	if err := batch.Error(); err != nil {
		return away("read events", err)
	}
	return req.Respond(nil, micro.WithHeaders(micro.Headers{subject.HeaderEvent: {eventEnd}, HeaderNext: {strconv.FormatUint(next, 10)}}))
}
