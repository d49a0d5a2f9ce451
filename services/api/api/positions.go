package api

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/api/cursor"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Events of several regions are told as one stream. Each region numbers its own, so a
// place in all of them is a cursor (package cursor). Who knows only the numbers of the
// region that is asked, from before there were cursors, goes on by them: the others are
// told again from about the time of that event.

const (
	// noticeEvery is how often a watch looks whether regions have gone or come back.
	noticeEvery = time.Second
	// positionTimeout bounds how long another region may take to say where its events
	// are. Of one that takes longer, the time is the position.
	positionTimeout = time.Second
	// clockSkew is by how much the clocks of two regions may differ.
	clockSkew = 5 * time.Second
)

// Names of the notices about regions, beside those of events.
const (
	eventAway = "region_away"
	eventBack = "region_back"
)

// source is where the events of one region come from.
type source struct {
	region string
	js     jetstream.JetStream
}

// sources are all regions, this one first.
func (a *API) sources() ([]source, error) {
	all := []source{{a.env.Region, a.env.JS}}
	for _, region := range a.env.Peers.Regions() {
		p, err := a.env.Peers.Get(region)
		if err != nil {
			return nil, err
		}
		all = append(all, source{region, p.JS})
	}
	return all, nil
}

// eventFilter is for the events of a tenant, or of one sandbox of it, wherever it is.
func (a *API) eventFilter(ctx context.Context, c caller, id string) (string, error) {
	if id == "" {
		return subject.TenantEvents(c.tenant), nil
	}
	sb, err := a.calls.get(ctx, c, &siroccov1.GetSandboxRequest{Id: id})
	if err != nil {
		return "", err
	}
	return subject.Event(c.tenant, sb.GetId()), nil
}

// begin says from where on a request wants the events of each region.
func (a *API) begin(ctx context.Context, req *siroccov1.WatchSandboxesRequest) (cursor.Cursor, error) {
	from := req.GetFromSequence()
	if text := req.GetCursor(); text != "" {
		if from != 0 {
			return nil, fault.Invalid("cursor", "give it or from_sequence, not both")
		}
		at, err := cursor.Parse(text)
		if err != nil {
			return nil, fault.Invalid("cursor", "%v", err)
		}
		return at, nil
	}
	if from == 1 || from > 1 && len(a.env.Peers.Regions()) == 0 {
		return cursor.Cursor{a.env.Region: {Sequence: from - 1}}, nil
	}
	stream, err := a.env.JS.Stream(ctx, subject.StreamEvents)
	if err != nil {
		return nil, away("open the event stream", err)
	}
	state := stream.CachedInfo().State
	if from == 0 {
		at := a.newest(ctx)
		at[a.env.Region] = cursor.Position{Sequence: state.LastSeq}
		return at, nil
	}
	at := cursor.Cursor{a.env.Region: {Sequence: from - 1}}
	if from-1 < state.FirstSeq {
		return at, nil // what is older than all that is kept is the start of all
	}
	last, err := stream.GetMsg(ctx, min(from-1, state.LastSeq))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return at, nil
	}
	if err != nil {
		return nil, away("read an event", err)
	}
	for _, region := range a.env.Peers.Regions() {
		at[region] = cursor.Position{Since: last.Time.Add(-clockSkew)}
	}
	return at, nil
}

// newest asks the other regions where their events are now.
func (a *API) newest(ctx context.Context) cursor.Cursor {
	ctx, cancel := context.WithTimeout(ctx, positionTimeout)
	defer cancel()
	now := time.Now()
	var mu sync.Mutex
	var asking sync.WaitGroup
	at := cursor.Cursor{}
	for _, region := range a.env.Peers.Regions() {
		at[region] = cursor.Position{Since: now}
	}
	for _, region := range a.env.Peers.Regions() {
		p, err := a.env.Peers.Get(region)
		if err != nil || a.abroad.Silent(region) != nil {
			continue
		}
		asking.Go(func() {
			stream, err := p.JS.Stream(ctx, subject.StreamEvents)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			at[region] = cursor.Position{Sequence: stream.CachedInfo().State.LastSeq}
		})
	}
	asking.Wait()
	return at
}

// locateEvent fills in where an event is in this region's stream, and in all.
func (a *API) locateEvent(event *siroccov1.SandboxEvent, at cursor.Cursor) *siroccov1.SandboxEvent {
	event.Sequence = at[a.env.Region].Sequence
	event.Cursor = at.String()
	return event
}

// toldElsewhere says whether an event is only what a region keeps of a sandbox that is
// in another one: that one tells it.
func (a *API) toldElsewhere(event *siroccov1.SandboxEvent) bool {
	in := event.GetSandbox().GetPlacement().GetRegion()
	return in != "" && in != event.GetRegion() && (in == a.env.Region || slices.Contains(a.env.Peers.Regions(), in))
}

// notices tells of regions that have gone silent, or come back, since it was asked last
// with the same map.
func (a *API) notices(away map[string]bool) []given {
	var all []given
	for _, region := range a.env.Peers.Regions() {
		loss := a.abroad.Silent(region)
		if (loss != nil) == away[region] {
			continue
		}
		away[region] = loss != nil
		event, name := &siroccov1.SandboxEvent{At: timestamppb.Now(), Region: region, Away: loss}, eventAway
		if loss == nil {
			event.Back, name = region, eventBack
		}
		all = append(all, given{event, name})
	}
	return all
}
