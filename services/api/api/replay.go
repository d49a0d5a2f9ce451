package api

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/cursor"
	"google.golang.org/protobuf/types/known/timestamppb"
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
	// HeaderCursor is, in that message, the cursor to go on from.
	HeaderCursor = "Sirocco-Cursor"
	// eventEnd is the HeaderEvent of that message.
	eventEnd = "end"
)

// replay answers an ask for events with one message for each, from where it says up
// to now, and then one with no body. It is how a tenant replays over the bus: consumers
// of its own would need rights in JetStream that can't be confined to a tenant.
//
// With from_sequence it is this region's events, which are those that the tenant can
// subscribe to on this bus; with a cursor those of all regions, and a notice for each
// that does not answer.
func (s *asker) replay(ctx context.Context, c caller, req micro.Request) error {
	headers := nats.Header(req.Headers())
	ask := &siroccov1.WatchSandboxesRequest{}
	if err := bus.Decode(headers, req.Data(), ask); err != nil {
		return err
	}
	a := s.api
	filter, err := a.eventFilter(ctx, c, ask.GetId())
	if err != nil {
		return err
	}
	sources, at := []source{{a.env.Region, a.env.JS}}, cursor.Cursor{}
	if ask.GetCursor() != "" {
		if at, err = a.begin(ctx, ask); err != nil {
			return err
		}
		if sources, err = a.sources(); err != nil {
			return err
		}
	} else {
		at[a.env.Region] = cursor.Position{Sequence: max(ask.GetFromSequence(), 1) - 1}
	}
	// A place in one of several regions is no cursor.
	whole := len(sources) == 1+len(a.env.Peers.Regions())
	asJSON := bus.IsJSON(headers, req.Data())
	left := replayPage
	tell := func(got given) error {
		a.locateEvent(got.event, at)
		if !whole {
			got.event.Cursor = ""
		}
		return answerEvent(req, got, asJSON)
	}
	for i, one := range sources {
		n, err := a.page(ctx, one, filter, left, at, tell)
		left -= n
		if err == nil {
			continue
		}
		if i == 0 {
			return err
		}
		a.log.WarnContext(ctx, "a region's events are missing in a replay", "peer", one.region, "err", err)
		loss := a.abroad.Silent(one.region)
		if loss == nil {
			loss = &siroccov1.RegionLoss{Region: one.region, Since: timestamppb.Now(), Note: "the events of region " + one.region + " can't be read now"}
		}
		if err := tell(given{&siroccov1.SandboxEvent{At: timestamppb.Now(), Region: one.region, Away: loss}, eventAway}); err != nil {
			return err
		}
	}
	end := micro.Headers{subject.HeaderEvent: {eventEnd}, HeaderNext: {strconv.FormatUint(at[a.env.Region].Sequence+1, 10)}}
	if whole {
		end[HeaderCursor] = []string{at.String()}
	}
	return req.Respond(nil, micro.WithHeaders(end))
}

// page tells at most left events of a region, moves its position, and returns how many
// it has read.
func (a *API) page(ctx context.Context, s source, filter string, left int, at cursor.Cursor, tell func(given) error) (n int, err error) {
	if loss := a.abroad.Silent(s.region); loss != nil {
		return 0, isAway(loss)
	}
	if left == 0 {
		return 0, nil
	}
	if s.region != a.env.Region {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, locateTimeout)
		defer cancel()
	}
	consumer, err := s.js.OrderedConsumer(ctx, subject.StreamEvents, consumerFrom(filter, at[s.region], replayIdle))
	if err != nil {
		return 0, away("read events", err)
	}
	batch, err := consumer.FetchNoWait(left)
	if err != nil {
		return 0, away("read events", err)
	}
	for msg := range batch.Messages() {
		n++
		meta, err := msg.Metadata()
		if err != nil {
			return n, fmt.Errorf("read event: %w", err)
		}
		at[s.region] = cursor.Position{Sequence: meta.Sequence.Stream}
		event, ok := eventOf(msg, meta, s.region)
		if !ok || a.toldElsewhere(event) {
			continue
		}
		if err := tell(given{event, msg.Headers().Get(subject.HeaderEvent)}); err != nil {
			return n, err
		}
	}
	if err := batch.Error(); err != nil {
		return n, away("read events", err)
	}
	return n, nil
}

// answerEvent sends one event as an answer.
func answerEvent(req micro.Request, got given, asJSON bool) error {
	body, kind, err := bus.Encode(got.event, asJSON)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	h := micro.Headers{subject.HeaderContentType: {kind}, subject.HeaderEvent: {got.name}}
	if err := req.Respond(body, micro.WithHeaders(h)); err != nil {
		return fault.New(fault.Unavailable, "answer with an event: %w", err)
	}
	return nil
}
