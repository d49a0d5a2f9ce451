package weight

import (
	"testing"
	"time"
)

// busy is ten regions, of which some drain, come back, are full or set by a
// person, with a state in the middle of it.
func busy() (State, []Region, time.Time) {
	now, regions := start, fleet(10)
	var s State
	run(DefaultConfig(), &s, &now, regions, 1)
	regions[0].Score, regions[1].Score, regions[2].Dead = 0.1, 0.5, true
	regions[3].Free = 0
	run(DefaultConfig(), &s, &now, regions, 3)
	regions[4].Override = &Override{Level: 0.5, Until: now.Add(time.Hour)}
	return s, regions, now.Add(time.Second)
}

// A step allocates its slots, the decisions and the state, and nothing for each
// region.
func TestStepAllocates(t *testing.T) {
	s, regions, now := busy()
	if n := testing.AllocsPerRun(100, func() { DefaultConfig().Step(s, regions, now) }); n > 3 {
		t.Errorf("%g allocations", n)
	}
}

func BenchmarkStep(b *testing.B) {
	s, regions, now := busy()
	b.ReportAllocs()
	for b.Loop() {
		DefaultConfig().Step(s, regions, now)
	}
}

func BenchmarkPick(b *testing.B) {
	s, regions, now := busy()
	_, out := DefaultConfig().Step(s, regions, now)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Pick(out, Request{Nearest: "a", Random: 0.7}); err != nil {
			b.Fatal(err)
		}
	}
}
