package evacuation

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"
)

var t0 = time.Unix(1_800_000_000, 0)

func TestKeysAreReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		order, sandbox, n := newID(), sandboxid.New(), rapid.IntRange(1, 99).Draw(t, "attempt")
		key := Key(order, sandbox, n)
		if !subject.ValidToken(key) {
			t.Fatalf("%q is no token", key)
		}
		o, s, m, err := ParseKey(key)
		if o != order || s != sandbox || m != n || err != nil {
			t.Fatalf("%q is read as %q, %q, %d, %v", key, o, s, m, err)
		}
	})
	for _, key := range []string{"", "ev-", "auto-1", "ev-abc-" + sandboxid.New() + "-1", Key(newID(), "sb-1", 1), Key(newID(), sandboxid.New(), 0), Key(newID(), sandboxid.New(), 1) + "x", Key(newID(), sandboxid.New(), 1) + "-01"} {
		if _, _, _, err := ParseKey(key); err == nil {
			t.Errorf("%q is taken for a key", key)
		}
	}
}

func TestOrdersAreChecked(t *testing.T) {
	for field, req := range map[string]*siroccov1.DrainNodeRequest{
		"over":           {Over: durationpb.New(25 * time.Hour)},
		"max_pause":      {MaxPause: durationpb.New(0)},
		"max_error_rate": {MaxErrorRate: proto.Float64(1.5)},
		"at_once":        {AtOnce: -1},
		"stages":         {Stages: []float64{0.5, 0.9}},
		"evict_after":    {EvictAfter: durationpb.New(-time.Second)},
	} {
		_, err := OfNode(req, "eu", "ops", t0)
		if f := fault.From(err); f == nil || f.Code != fault.InvalidArgument || f.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	e, err := OfNode(&siroccov1.DrainNodeRequest{Name: "n1"}, "eu", "ops", t0)
	if err != nil || e.GetOver().AsDuration() != DefaultOver || e.GetMaxErrorRate() != DefaultErrorRate || len(e.GetStages()) != 3 ||
		e.GetEvictAt().AsTime().Sub(t0) != DefaultEvictAfter {
		t.Errorf("%v, %v", e, err)
	}
}

// A hundred sandboxes over 30 s: how many have begun at which time.
func TestTheCourseOfAnOrder(t *testing.T) {
	e, err := OfRegion(&siroccov1.EvacuateRegionRequest{Region: "eu", AtOnce: 100}, "ops", t0)
	if err != nil {
		t.Fatal(err)
	}
	moved := 0
	for _, at := range []struct {
		second float64
		moved  int
		share  float64
	}{{0, 0, 0.8}, {5, 10, 0.8}, {9.9, 20, 0.8}, {10, 20, 0.4}, {15, 40, 0.4}, {20, 60, 0.4}, {20.1, 60, 0}, {25, 80, 0}, {30.2, 100, 0}} {
		now := t0.Add(time.Duration(at.second * float64(time.Second)))
		var d Decision
		e, d = Step(e, Seen{Fresh: 100 - moved, Ready: 100 - moved, Moved: int64(moved)}, now)
		moved += d.New
		if moved != at.moved || d.Share != at.share {
			t.Errorf("after %v s: %d begun and a share of %v, want %d and %v", at.second, moved, d.Share, at.moved, at.share)
		}
	}
	e, _ = Step(e, Seen{Moved: 100}, t0.Add(31*time.Second))
	if e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_DONE || e.GetWhy() != "100 were moved in 31s" {
		t.Errorf("%v", e)
	}
}

// What can't be moved off a node gets its notice when its time has come, also in a pause.
func TestEvictionIsTheLastResort(t *testing.T) {
	e, err := OfNode(&siroccov1.DrainNodeRequest{Name: "n1", EvictAfter: durationpb.New(time.Minute)}, "eu", "ops", t0)
	if err != nil {
		t.Fatal(err)
	}
	left := Seen{GivenUp: 2, Failed: 8, LastFailure: "no room", Left: []*siroccov1.EvacuationLeft{{Code: "no_capacity", Reason: "no room", Count: 2}}}
	e, d := Step(e, left, t0.Add(time.Second))
	if d.Evict || Over(e) {
		t.Errorf("at once: %+v, %v", d, e)
	}
	e, d = Step(e, left, t0.Add(59*time.Second))
	if d.Evict || e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_WAITING || !strings.Contains(e.GetWhy(), "2 × no room") {
		t.Errorf("before: %+v, %v", d, e)
	}
	e, d = Step(e, left, t0.Add(time.Minute))
	if !d.Evict || e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_EVICTING {
		t.Errorf("then: %+v, %v", d, e)
	}
	e, _ = Step(e, Seen{Failed: 8}, t0.Add(2*time.Minute))
	if e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_DONE || !strings.Contains(e.GetWhy(), "evicted") {
		t.Errorf("in the end: %v", e)
	}
}

// An order stands until it is cancelled or over; one that follows it gives back what the
// region had before both.
func TestOneOrderAtATime(t *testing.T) {
	_, js := bustest.Start(t)
	s, err := Open(t.Context(), js)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get(t.Context(), "eu", ""); !errors.Is(err, ErrNone) {
		t.Errorf("before the first: %v", err)
	}
	if _, err := s.Change(t.Context(), "eu", "", func(*siroccov1.Evacuation) error { return nil }); !errors.Is(err, ErrNone) {
		t.Errorf("changing none: %v", err)
	}
	ordered := make([]*siroccov1.Evacuation, 8)
	var all sync.WaitGroup
	for i := range ordered {
		all.Go(func() { ordered[i] = give(t.Context(), t, s) })
	}
	all.Wait()
	first, _, err := s.Get(t.Context(), "eu", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ordered {
		if !proto.Equal(e, first) {
			t.Errorf("an order at the same time gave %v, there is %v", e, first)
		}
	}
	set := func(change func(e *siroccov1.Evacuation)) {
		t.Helper()
		_, err := s.Change(t.Context(), "eu", "", func(e *siroccov1.Evacuation) error { change(e); return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	set(func(e *siroccov1.Evacuation) {
		e.State, e.LevelBefore = siroccov1.EvacuationState_EVACUATION_STATE_DONE, proto.Float64(0.7)
	})
	second := give(t.Context(), t, s)
	if second.GetId() == first.GetId() || second.GetLevelBefore() != 0.7 {
		t.Errorf("after one that is over: %v", second)
	}
	set(func(e *siroccov1.Evacuation) {
		if err := errors.Join(Cancel(e, t0), ignore(Cancel(e, t0))); err != nil {
			t.Error(err)
		}
		e.State = siroccov1.EvacuationState_EVACUATION_STATE_CANCELLED
	})
	if third := give(t.Context(), t, s); third.GetId() == second.GetId() || third.LevelBefore != nil {
		t.Errorf("after one that was cancelled: %v", third)
	}
}

// ignore is nil for the error that there is nothing to change.
func ignore(err error) error {
	if errors.Is(err, ErrNoChange) {
		return nil
	}
	return errors.Join(errors.New("cancelled twice"), err)
}

func give(ctx context.Context, t *testing.T, s *Store) *siroccov1.Evacuation {
	t.Helper()
	e, err := OfRegion(&siroccov1.EvacuateRegionRequest{Region: "eu"}, "ops", t0)
	if err != nil {
		t.Error(err)
	}
	e, err = s.Order(ctx, e)
	if err != nil {
		t.Error(err)
	}
	return e
}

// A stage goes on after a pause where it was, and the pauses grow up to a limit.
func TestAPauseStopsTheClockOfItsStage(t *testing.T) {
	e, err := OfRegion(&siroccov1.EvacuateRegionRequest{Region: "eu", AtOnce: 100}, "ops", t0)
	if err != nil {
		t.Fatal(err)
	}
	seen := Seen{Fresh: 95, Ready: 95, Moved: 3, Again: 2}
	e, _ = Step(e, seen, t0)
	seen.Failed = 2
	e, _ = Step(e, seen, t0.Add(5*time.Second))
	if e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_PAUSED {
		t.Fatalf("no pause: %v", e)
	}
	e, d := Step(e, seen, t0.Add(20*time.Second))
	if e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_MOVING || d.New != 5 {
		t.Errorf("after 5 s and a pause %+v, want that 10 have begun: %v", d, e)
	}
	var pauses []time.Duration
	for n := range int32(6) {
		pauses = append(pauses, pauseTime(n+1))
	}
	if want := []time.Duration{15 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 4 * time.Minute, 4 * time.Minute}; !slices.Equal(pauses, want) {
		t.Errorf("pauses of %v, want %v", pauses, want)
	}
}
