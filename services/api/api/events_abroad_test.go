package api_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// place is a place in the events of a region.
func place(e *siroccov1.SandboxEvent) string {
	return fmt.Sprintf("%s:%d", e.GetRegion(), e.GetRegionSequence())
}

// The events of all regions come as one stream; whoever goes on behind any of them, in
// whatever way and through whichever region, gets each of the others once.
func TestEventsOfAllRegions(t *testing.T) {
	p := startPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*wait)
	defer cancel()
	p.create(p.us, &siroccov1.CreateSandboxRequest{}) // before: not seen
	eventually(t, func() error {
		stream, err := p.us.js.Stream(ctx, subject.StreamEvents)
		if err == nil && stream.CachedInfo().State.LastSeq < 4 {
			err = fmt.Errorf("us has told %d events", stream.CachedInfo().State.LastSeq)
		}
		return err
	})
	live := p.eu.events(ctx, p.euKey, "", "")
	far := p.create(p.us, &siroccov1.CreateSandboxRequest{Name: "far"})
	near := p.create(p.eu, &siroccov1.CreateSandboxRequest{Name: "near"})
	var all []*siroccov1.SandboxEvent
	last := map[string]uint64{}
	for range 8 {
		id, _, e := live.next()
		if id != e.GetCursor() || e.GetRegionSequence() <= last[e.GetRegion()] {
			t.Errorf("event %s after %v: %v", id, last, e)
		}
		last[e.GetRegion()] = e.GetRegionSequence()
		if e.GetSequence() != last["eu"] {
			t.Errorf("%s has the sequence %d, after %v", place(e), e.GetSequence(), last)
		}
		if want := map[string]string{far.GetId(): "us", near.GetId(): "eu"}[e.GetSandbox().GetId()]; e.GetRegion() != want {
			t.Errorf("an event of %s comes from %s", e.GetSandbox().GetSpec().GetName(), e.GetRegion())
		}
		all = append(all, e)
	}
	if len(last) != 2 {
		t.Fatalf("events came from %v only", last)
	}

	// rest is what must follow the i-th, in the order of each region.
	check := func(how string, i int, next func() *siroccov1.SandboxEvent) {
		t.Helper()
		missing := map[string]*siroccov1.SandboxEvent{}
		for _, e := range all[i+1:] {
			missing[place(e)] = e
		}
		for len(missing) > 0 {
			e := next()
			want := missing[place(e)]
			if want == nil || !proto.Equal(e.GetSandbox(), want.GetSandbox()) {
				t.Errorf("%s behind %s: %v came; want one of %d", how, all[i].GetCursor(), e, len(missing))
				return
			}
			delete(missing, place(e))
		}
	}
	for _, i := range []int{0, 3, 6} {
		at := all[i].GetCursor()
		resumed := p.eu.events(ctx, p.euKey, "", at)
		check("Last-Event-ID", i, func() *siroccov1.SandboxEvent { _, _, e := resumed.next(); return e })
		asked := p.eu.events(ctx, p.euKey, "?cursor="+at, "")
		check("?cursor=", i, func() *siroccov1.SandboxEvent { _, _, e := asked.next(); return e })
		for _, r := range []*region{p.eu, p.us} {
			key := map[*region]string{p.eu: p.euKey, p.us: p.usKey}[r]
			stream := r.cursorWatch(ctx, key, &siroccov1.WatchSandboxesRequest{Cursor: at})
			check("RPC through "+r.name, i, func() *siroccov1.SandboxEvent {
				if !stream.Receive() {
					t.Fatal(stream.Err())
				}
				return stream.Msg()
			})
		}
		events, _, _ := p.eu.replay(ctx, t, fmt.Sprintf(`{"cursor":%q}`, at))
		check("the bus", i, func() *siroccov1.SandboxEvent {
			if len(events) == 0 {
				t.Fatal("too few")
			}
			e := events[0]
			events = events[1:]
			return e
		})
	}
	// One sandbox of the other region, and a client from before there were cursors.
	one := p.eu.events(ctx, p.euKey, "?cursor=start&id=far", "")
	for range 4 {
		if _, _, e := one.next(); e.GetSandbox().GetId() != far.GetId() {
			t.Errorf("an event of another sandbox: %v", e)
		}
	}
	old := p.eu.events(ctx, p.euKey, fmt.Sprintf("?from=%d", last["eu"]), "")
	seen := map[string]bool{}
	for range 1 + 8 { // its last one, and all of us: they are younger than the skew of clocks
		_, _, e := old.next()
		seen[place(e)] = true
	}
	if !seen[fmt.Sprintf("eu:%d", last["eu"])] || !seen[fmt.Sprintf("us:%d", last["us"])] || seen[fmt.Sprintf("eu:%d", last["eu"]-1)] {
		t.Errorf("from %d on came %v", last["eu"], seen)
	}
	// Without a cursor, the bus replays what one can subscribe to there.
	events, next, at := p.eu.replay(ctx, t, `{"from_sequence":1}`)
	for _, e := range events {
		if e.GetRegion() != "eu" || e.GetCursor() != "" {
			t.Errorf("a replay of eu has %v", e)
		}
	}
	if next != fmt.Sprint(last["eu"]+1) || at != "" {
		t.Errorf("the replay of eu goes on at %q, %q", next, at)
	}
}

// replay asks for events over the bus.
func (r *region) replay(ctx context.Context, t testing.TB, ask string) (events []*siroccov1.SandboxEvent, next, cursor string) {
	t.Helper()
	inbox := r.nc.NewInbox()
	sub, err := r.nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.nc.PublishRequest(subject.API("acme", "sandbox", "events"), inbox, []byte(ask)); err != nil {
		t.Fatal(err)
	}
	for {
		msg, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if msg.Header.Get(subject.HeaderErrorCode) != "" {
			t.Fatalf("%s: %v", ask, msg.Header)
		}
		if msg.Header.Get(subject.HeaderEvent) == "end" {
			return events, msg.Header.Get("Sirocco-Next"), msg.Header.Get("Sirocco-Cursor")
		}
		e := &siroccov1.SandboxEvent{}
		if err := bus.Decode(msg.Header, msg.Data, e); err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
}

// A region that goes away and comes back is told of; the events of the others go on
// meanwhile, and none is missed.
func TestEventsWhileARegionIsAway(t *testing.T) {
	p := startPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*wait)
	defer cancel()
	live := p.eu.events(ctx, p.euKey, "", "")
	p.usDown()
	if _, name, e := live.next(); name != "region_away" || e.GetAway().GetRegion() != "us" || e.GetAway().GetSince() == nil || e.GetSandbox() != nil {
		t.Fatalf("us is away: %s %v", name, e)
	}
	near := p.create(p.eu, &siroccov1.CreateSandboxRequest{})
	at := ""
	for _, want := range []string{"accepted", "placed", "starting", "running"} {
		id, name, e := live.next()
		if name != want || e.GetSandbox().GetId() != near.GetId() {
			t.Errorf("%s %v; want %s", name, e, want)
		}
		at = id
	}
	// A watch that begins now is told, and so is a replay.
	late := p.eu.events(ctx, p.euKey, "", "")
	if id, name, _ := late.next(); name != "region_away" || !strings.Contains(id, "us:@") {
		t.Errorf("a watch that begins while us is away: %s %s", id, name)
	}
	events, _, cursor := p.eu.replay(ctx, t, `{"cursor":"start"}`)
	if len(events) != 5 || events[4].GetAway().GetRegion() != "us" || cursor == "" {
		t.Errorf("a replay: %v, %s", events, cursor)
	}

	p.usUp()
	for name, s := range map[string]*sse{"from before": live, "from meanwhile": late} {
		if _, got, e := s.next(); got != "region_back" || e.GetBack() != "us" {
			t.Errorf("us is back, %s: %s %v", name, got, e)
		}
	}
	far := p.create(p.us, &siroccov1.CreateSandboxRequest{})
	resumed := p.eu.events(ctx, p.euKey, "", at)
	for name, s := range map[string]*sse{"from before": live, "from meanwhile": late, "resumed": resumed} {
		for range 4 {
			if _, _, e := s.next(); e.GetSandbox().GetId() != far.GetId() || e.GetRegion() != "us" {
				t.Errorf("%s: %v", name, e)
			}
		}
	}
}

// What a sandbox does after it has moved is told by the region where it is, once.
func TestEventsOfOneThatMoves(t *testing.T) {
	p := startPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*wait)
	defer cancel()
	live := p.eu.events(ctx, p.euKey, "", "")
	sb := p.create(p.eu, &siroccov1.CreateSandboxRequest{})
	update := func(r *region, step lifecycle.Step) *siroccov1.Sandbox {
		t.Helper()
		next, err := r.store.Update(ctx, "acme", sb.GetId(), nil, step)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	update(p.eu, lifecycle.Migrate{Move: &siroccov1.Move{Key: "m", Region: "us", Node: "n9", Epoch: 2}})
	departed := update(p.eu, lifecycle.Depart{Epoch: 2})
	arrived, err := lifecycle.Apply(departed, lifecycle.Arrive{Observed: &siroccov1.Observed{Epoch: 2}}, departed.GetHistory()[0].GetAt().AsTime())
	if err != nil {
		t.Fatal(err)
	}
	arrived.Revision = 0
	if arrived, err = p.us.store.Create(ctx, arrived); err != nil {
		t.Fatal(err)
	}
	update(p.eu, lifecycle.Follow{Record: arrived})
	ended := update(p.us, lifecycle.Finish{Epoch: 2, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_USER}})
	update(p.eu, lifecycle.Follow{Record: ended})
	p.create(p.eu, &siroccov1.CreateSandboxRequest{Name: "next"})

	story := map[string]string{}
	for range 5 + 2 + 4 {
		_, name, e := live.next()
		if e.GetSandbox().GetId() == sb.GetId() {
			story[e.GetRegion()] += " " + name
		}
	}
	if story["eu"] != " accepted placed starting running migrating" || story["us"] != " running stopped" {
		t.Errorf("the story is: %v", story)
	}
}
