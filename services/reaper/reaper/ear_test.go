package reaper

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func minutes(n int) time.Time { return t0.Add(time.Duration(n) * time.Minute) }

// While the bus is away nobody is heard. That is no silence of the nodes: when it
// is back they have as long as ever to be heard of.
func TestTheBusAwayIsNoSilenceOfNodes(t *testing.T) {
	e := newEar()
	if e.listens(0) {
		t.Error("it listens before it has begun")
	}
	e.begin(0, t0)
	e.mark("lives", true, minutes(1))
	e.mark("silent", false, minutes(1))
	if !e.listens(0) || e.last("lives", minutes(9)) != minutes(9) || e.last("silent", minutes(9)) != minutes(1) || e.last("never heard", minutes(9)) != t0 {
		t.Errorf("before: %v, %v, %v", e.last("lives", minutes(9)), e.last("silent", minutes(9)), e.last("never heard", minutes(9)))
	}
	if e.listens(1) {
		t.Error("the bus is back and has not been listened to yet: what is known is old")
	}
	e.begin(1, minutes(30))
	for _, node := range []string{"lives", "silent", "never heard"} {
		if last := e.last(node, minutes(31)); last != minutes(30) {
			t.Errorf("%s is silent since %v, before anybody listened", node, last)
		}
	}
	if len(e.living()) != 0 {
		t.Errorf("alive before they were heard: %v", e.living())
	}
	e.mark("lives", true, minutes(32))
	if got := e.living(); !slices.Equal(got, []string{"lives"}) || e.last("lives", minutes(40)) != minutes(40) {
		t.Errorf("after it was heard again: %v, %v", got, e.last("lives", minutes(40)))
	}
}

// Whatever is heard and however often the bus goes: no silence is longer than the
// time for which has been listened without a gap.
func TestNoSilenceIsLongerThanTheListening(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, since, now := newEar(), t0, t0
		e.begin(0, t0)
		for range rapid.IntRange(0, 50).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 3600).Draw(t, "seconds")) * time.Second)
			node := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "node")
			if rapid.Bool().Draw(t, "heard") {
				e.mark(node, rapid.Bool().Draw(t, "alive"), now)
			} else {
				e.begin(uint64(now.Unix()), now)
				since = now
			}
			for _, n := range []string{"a", "b", "c"} {
				if last := e.last(n, now); last.Before(since) || last.After(now) {
					t.Fatalf("%s: silent since %v; listened since %v, now %v", n, last, since, now)
				}
			}
		}
	})
}
