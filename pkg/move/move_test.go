package move

import (
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const limit = 10 * time.Second

func after(t testing.TB, sb *siroccov1.Sandbox, steps ...lifecycle.Step) *siroccov1.Sandbox {
	t.Helper()
	for _, s := range steps {
		next, err := lifecycle.Apply(sb, s, t0)
		if err != nil {
			t.Fatalf("%T: %v", s, err)
		}
		sb = next
	}
	return sb
}

// The records of one sandbox, on its way from node a of eu to node b of us.
func running(t testing.TB) *siroccov1.Sandbox {
	t.Helper()
	sb := lifecycle.Accept("sb-x", "acme", "key", &siroccov1.CreateSandboxRequest{}, t0)
	return after(t, sb, lifecycle.Place{Region: "eu", Node: "a"}, lifecycle.Run{Observed: &siroccov1.Observed{Epoch: 1}})
}

func to(node, key string, epoch uint64) lifecycle.Migrate {
	return lifecycle.Migrate{Move: &siroccov1.Move{
		Key: key, Region: "us", Node: node, Epoch: epoch, Deadline: timestamppb.New(t0.Add(limit)),
	}}
}

var (
	depart  = lifecycle.Depart{Epoch: 2}
	callOff = lifecycle.CallOff{Epoch: 2}
	stop    = lifecycle.Stop{Cause: siroccov1.Cause_CAUSE_USER}
	arrive  = lifecycle.Arrive{Observed: &siroccov1.Observed{Epoch: 2}}
)

func TestSource(t *testing.T) {
	run := running(t)
	moving := after(t, run, to("b", "k", 2))
	gone, back := after(t, moving, depart), after(t, moving, callOff)
	again := after(t, back, to("c", "k2", 3))
	late := limit + time.Second
	for _, c := range []struct {
		name          string
		phase         Phase
		record        *siroccov1.Sandbox
		ready, broken bool
		at            time.Duration
		want          Do
	}{
		{"no move", Idle, run, false, false, 0, Live},
		{"asked to move", Idle, moving, false, false, 0, Send},
		{"asked too late", Idle, moving, false, false, late, CallOff},
		{"asked to move and to end", Idle, after(t, moving, stop), false, false, 0, Live},
		{"under way", Sending, moving, false, false, 0, Wait},
		{"arrived whole", Sending, moving, true, false, 0, Commit},
		{"arrived whole, too late", Sending, moving, true, false, late, Resume},
		{"broke off", Sending, moving, false, true, 0, Resume},
		{"the agent came back and reads what was before", Sending, run, false, true, 0, Resume},
		{"called off by another", Sending, back, true, false, 0, Forget},
		{"ended meanwhile", Sending, after(t, moving, stop), true, false, 0, Live},
		{"runs again, not written yet", Returned, moving, true, false, 0, Resume},
		{"runs again, written", Returned, back, false, true, 0, Forget},
		{"runs again, and is asked to move once more", Returned, again, false, true, 0, Forget},
		{"no answer to Depart", Committing, moving, true, false, 0, Commit},
		{"no answer to Depart, too late", Committing, moving, true, false, late, CallOff},
		{"no answer to Depart, and a new agent", Committing, moving, false, true, 0, CallOff},
		{"no answer to Depart, and a read from before the move", Committing, run, false, true, 0, CallOff},
		{"Depart was overtaken", Committing, back, true, false, 0, Forget},
		{"Depart was overtaken, and another move is asked for", Committing, again, true, false, 0, Forget},
		{"Depart was overtaken by an end", Committing, after(t, moving, stop), true, false, 0, Live},
		{"departed", Committing, gone, true, false, 0, Leave},
		{"departed, for a new agent, late", Committing, gone, false, true, late, Leave},
		{"departed and ended there", Committing, after(t, gone, arrive, lifecycle.Finish{Epoch: 2}), false, true, 0, Leave},
	} {
		epoch := uint64(2)
		if c.phase == Idle {
			epoch = 0
		}
		s := Source{Epoch: 1, Note: Note{epoch, c.phase}, Record: c.record, Ready: c.ready, Broken: c.broken}
		if got := s.Next(t0.Add(c.at)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if got := (Source{Epoch: 1, Note: Note{2, Committing}, Forgotten: true}).Next(t0); got != Leave {
		t.Errorf("the record is gone: %s", got)
	}
}

func TestTarget(t *testing.T) {
	run := running(t)
	moving := after(t, run, to("b", "k", 2))
	gone, back := after(t, moving, depart), after(t, moving, callOff)
	for _, c := range []struct {
		name   string
		record *siroccov1.Sandbox
		want   Fate
	}{
		{"nothing is known", nil, Unknown},
		{"from before the move", run, Unknown},
		{"not made yet", moving, Unknown},
		{"made", gone, Release},
		{"made, and to end", after(t, gone, stop), Release},
		{"called off", back, Discard},
		{"to end instead", after(t, moving, stop), Discard},
		{"a move of another epoch", after(t, back, to("b", "k2", 3)), Discard},
		{"made, to another node", after(t, run, to("c", "k", 2), depart), Discard},
		{"another copy has arrived", after(t, gone, arrive), Discard},
		{"ended", after(t, gone, lifecycle.Finish{Epoch: 2}), Discard},
	} {
		if got := (Target{Region: "us", Node: "b", Epoch: 2, Record: c.record}).Next(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if got := (Target{Epoch: 2, Forgotten: true}).Next(); got != Discard {
		t.Errorf("the record is gone: %s", got)
	}
}

func TestLand(t *testing.T) {
	moving := after(t, running(t), to("b", "k", 2))
	gone := after(t, moving, depart)
	announced, write := Announce(nil, moving, "us", t0)
	if !write || !lifecycle.Shadow(announced, "us") {
		t.Fatalf("announced: %v, %v", announced, write)
	}
	followed := after(t, announced, lifecycle.Follow{Region: "us", Record: gone})
	for name, here := range map[string]*siroccov1.Sandbox{"nothing": nil, "what was announced": announced, "what the reaper followed": followed} {
		landed, write := Land(here, gone, "us", arrive, t0)
		if !write || landed.GetState() != siroccov1.State_STATE_RUNNING || landed.GetPlacement().GetEpoch() != 2 || lifecycle.Shadow(landed, "us") {
			t.Errorf("over %s: %v, %v", name, landed, write)
		}
		tagged := after(t, landed, lifecycle.SetTags{Tags: map[string]string{"a": "b"}})
		if twice, write := Land(tagged, gone, "us", arrive, t0); write || twice != tagged {
			t.Errorf("twice over %s: %v, %v", name, twice, write)
		}
	}
	// What was changed there after the departure stays.
	stopping := after(t, followed, stop)
	if landed, write := Land(stopping, gone, "us", arrive, t0); write || landed != stopping {
		t.Errorf("over one that is to end: %v, %v", landed, write)
	}
}

func TestRouteOf(t *testing.T) {
	moving := after(t, running(t), to("b", "k", 2))
	gone := after(t, moving, depart)
	there := after(t, gone, arrive)
	for _, c := range []struct {
		sb     *siroccov1.Sandbox
		region string
		want   Route
	}{
		{moving, "eu", Here}, {moving, "us", There}, {gone, "eu", Later}, {gone, "us", Here}, {there, "eu", There}, {there, "us", Here},
		{after(t, moving, callOff), "us", There},
	} {
		if got := RouteOf(c.sb, c.region); got != c.want {
			t.Errorf("%s in %s: %v, want %v", c.sb.GetState(), c.region, got, c.want)
		}
	}
}

// Whatever becomes of the record, and whichever of its revisions each node has seen: the
// source never goes on and the copy is never released for the same move, and each decides
// for good.
func TestOneOfTheTwoRuns(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		revisions := []*siroccov1.Sandbox{running(t), after(t, running(t), to("b", "k", 2))}
		steps := []lifecycle.Step{depart, callOff, stop, lifecycle.SetTags{}, to("c", "k2", 3), lifecycle.Depart{Epoch: 3}, arrive, lifecycle.Finish{Epoch: 1}}
		for range rapid.IntRange(0, 12).Draw(rt, "steps") {
			step := rapid.SampledFrom(steps).Draw(rt, "step")
			if next, err := lifecycle.Apply(revisions[len(revisions)-1], step, t0); err == nil {
				revisions = append(revisions, next)
			}
		}
		goesOn, released, discarded := false, false, false
		for i, sb := range revisions {
			for _, ready := range []bool{false, true} {
				s := Source{Epoch: 1, Note: Note{2, Committing}, Record: sb, Ready: ready, Broken: !ready}
				switch do := s.Next(t0.Add(time.Duration(i) * limit)); do {
				case Resume, Send:
					rt.Fatalf("the source does not know, and goes on: %s at %v", do, sb)
				case Forget:
					goesOn = true
				}
			}
			switch (Target{Region: "us", Node: "b", Epoch: 2, Record: sb}).Next() {
			case Release:
				released = true
			case Discard:
				// One that has arrived does not ask any more.
				discarded = discarded || sb.GetPlacement().GetEpoch() < 2
			}
		}
		if goesOn && released {
			rt.Fatalf("both run: %v", revisions)
		}
		if released && discarded {
			rt.Fatalf("the copy is released and discarded: %v", revisions)
		}
	})
}
