package evacuation

import (
	"math"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// fate is what becomes of a sandbox in a world.
type fate struct {
	state              string // "fresh", "under way", "again", "moved", "given up", "barred", "ended"
	running, ever, due bool
	attempts, tick     int
}

// world plays what an evacuation is about: sandboxes whose moves end well, badly or
// slowly, that come and end.
type world struct {
	t         *rapid.T
	e         *siroccov1.Evacuation
	now       time.Time
	all       []*fate
	failed    int64
	slow      int64
	moved     int64
	givenBack bool
	// errors is the chance in percent that a move fails, delays that it is slow.
	errors, delays int
	churn          bool
}

func (w *world) chance(percent int, what string) bool {
	return percent > 0 && rapid.IntRange(1, 100).Draw(w.t, what) <= percent
}

func (w *world) seen() Seen {
	s := Seen{Moved: w.moved, Failed: w.failed, Slow: w.slow, GivenBack: w.givenBack, Nodes: 5}
	for _, f := range w.all {
		switch f.state {
		case "fresh":
			s.Fresh++
			if f.running {
				s.Ready++
			}
		case "under way":
			s.UnderWay++
		case "again":
			s.Again++
			if f.due {
				s.Due++
			}
		case "given up":
			s.GivenUp++
		case "barred":
			s.Barred++
		}
	}
	return s
}

// tick lets time pass: moves end, what failed is due again, some come and some end.
func (w *world) tick(d time.Duration) {
	w.now = w.now.Add(d)
	for _, f := range w.all {
		f.running = true
		switch f.state {
		case "under way":
			if f.tick--; f.tick > 0 {
				continue
			}
			if w.chance(w.errors, "fails") {
				w.failed++
				f.attempts++
				f.state, f.due = "again", false
				if f.attempts == 3 {
					f.state = "given up"
				}
				continue
			}
			if w.chance(w.delays, "slow") {
				w.slow++
			}
			w.moved++
			f.state = "moved"
		case "again":
			f.due = true
		case "fresh", "given up":
			if w.churn && w.chance(1, "ends") {
				f.state = "ended"
			}
		}
	}
	if w.churn && w.chance(20, "comes") {
		w.all = append(w.all, &fate{state: "fresh"})
	}
}

// carryOut begins the moves that were decided.
func (w *world) carryOut(d Decision) {
	for _, f := range w.all {
		switch {
		case f.state == "again" && f.due && d.Again > 0:
			d.Again--
		case f.state == "fresh" && f.running && d.New > 0:
			d.New--
		default:
			continue
		}
		f.state, f.ever, f.tick = "under way", true, rapid.IntRange(1, 4).Draw(w.t, "ticks")
	}
	if d.New != 0 || d.Again != 0 {
		w.t.Fatalf("it lets %d new and %d old ones begin that are not there", d.New, d.Again)
	}
	w.givenBack = w.givenBack || d.GiveBack
}

func drawWorld(t *rapid.T, errors, delays int, churn bool) *world {
	w := &world{t: t, now: time.Unix(1_800_000_000, 0), errors: errors, delays: delays, churn: churn}
	req := &siroccov1.EvacuateRegionRequest{Region: "eu", AtOnce: int32(rapid.IntRange(0, 30).Draw(t, "at once"))}
	if rapid.Bool().Draw(t, "other stages") {
		req.Stages = []float64{0.1, 0.15, 0.5, 0.9, 1}
	}
	e, err := OfRegion(req, "ops", w.now)
	if err != nil {
		t.Fatal(err)
	}
	if rapid.Bool().Draw(t, "a node") {
		e, err = OfNode(&siroccov1.DrainNodeRequest{Name: "n1"}, "eu", "ops", w.now)
		if err != nil {
			t.Fatal(err)
		}
	}
	w.e = e
	for range rapid.IntRange(0, 150).Draw(t, "sandboxes") {
		f := &fate{state: "fresh", running: rapid.Bool().Draw(t, "running")}
		if w.chance(3, "barred") {
			f.state = "barred"
		}
		w.all = append(w.all, f)
	}
	return w
}

// step takes one step and checks what must hold of every step.
func (w *world) step() Decision {
	t, before, s := w.t, proto.CloneOf(w.e), w.seen()
	after, d := Step(w.e, s, w.now)
	if !proto.Equal(before, w.e) {
		t.Fatal("it changed what it was given")
	}
	if again, same := Step(w.e, s, w.now); !proto.Equal(again, after) || same != d {
		t.Fatalf("the same input gave %v and %v", d, same)
	}
	if s.UnderWay+d.New+d.Again > atOnceOf(w.e, s) && d.New+d.Again > 0 {
		t.Fatalf("%d + %d + %d under way, %d are allowed", s.UnderWay, d.New, d.Again, atOnceOf(w.e, s))
	}
	if after.GetStage() < before.GetStage() {
		t.Fatalf("stage %d after %d", after.GetStage(), before.GetStage())
	}
	if cancelled := w.e.GetCancelled() != nil; cancelled && d.New+d.Again > 0 {
		t.Fatalf("%+v after it was cancelled", d)
	} else if !cancelled && before.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_ORDERED && d.Share > share(before) {
		t.Fatalf("the share rises from %v to %v", share(before), d.Share)
	}
	if d.New > 0 {
		limit := int(math.Ceil(after.GetStages()[after.GetStage()]*float64(s.movable()) - 1e-9))
		if s.begun()+d.New > limit {
			t.Fatalf("%d begun and %d more in stage %d, whose limit is %d", s.begun(), d.New, after.GetStage(), limit)
		}
	}
	if after.GetStage() > before.GetStage() && (s.UnderWay > 0 || s.Again > 0) {
		t.Fatalf("stage %d begins with %d under way and %d to be tried again", after.GetStage(), s.UnderWay, s.Again)
	}
	if after.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_MOVING && d.New+d.Again > 0 {
		t.Fatalf("%+v while %v", d, after.GetState())
	}
	w.e = after
	return d
}

func atOnceOf(e *siroccov1.Evacuation, s Seen) int {
	if e.GetAtOnce() > 0 {
		return int(e.GetAtOnce())
	}
	return min(atOncePerNode*s.Nodes, maxAtOnce)
}

// Whatever happens, each step keeps the promises of the package; see world.step. A
// stage that saw too many failures, or slow moves, lets nothing begin.
func TestEveryStepHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t, rapid.IntRange(0, 30).Draw(t, "errors"), rapid.IntRange(0, 20).Draw(t, "delays"), rapid.Bool().Draw(t, "churn"))
		var failed, slow, moved int64 // where the judgement of the stage begins
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			was, stage := w.e.GetState(), w.e.GetStage()
			d := w.step()
			bad := w.failed-failed > 1 && float64(w.failed-failed) > 0.02*float64(w.failed-failed+w.moved-moved) ||
				w.slow-slow > 1 && float64(w.slow-slow) > 0.01*float64(w.moved-moved)
			resumed := was == siroccov1.EvacuationState_EVACUATION_STATE_PAUSED && w.e.GetState() != was
			if stage == w.e.GetStage() && !resumed && bad && d.New+d.Again > 0 {
				t.Fatalf("%d failed and %d slow of %d, and %+v begin", w.failed-failed, w.slow-slow, w.moved-moved, d)
			}
			if resumed || w.e.GetStage() != stage || was == siroccov1.EvacuationState_EVACUATION_STATE_ORDERED {
				failed, slow, moved = w.failed, w.slow, w.moved
			}
			w.carryOut(d)
			w.tick(time.Duration(rapid.IntRange(50, 2000).Draw(t, "ms")) * time.Millisecond)
		}
	})
}

// Where nothing goes wrong all are moved within the time and what the number at once
// adds to it, and no pause comes.
func TestAllAreMovedInTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t, 0, 0, false)
		limit := w.now.Add(DefaultOver + time.Duration(len(w.all)+20)*time.Second)
		for !Over(w.e) && w.e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_WAITING {
			w.carryOut(w.step())
			w.tick(200 * time.Millisecond)
			if w.now.After(limit) {
				t.Fatalf("not over after %v: %v", w.now.Sub(w.e.GetBegun().AsTime()), w.e)
			}
			if w.e.GetPauses() > 0 {
				t.Fatalf("a pause: %s", w.e.GetWhy())
			}
		}
		if s := w.seen(); s.Fresh+s.Again+s.UnderWay > 0 || Left(w.e) != 0 || w.e.GetMoved() != w.moved {
			t.Fatalf("over with %+v: %v", s, w.e)
		}
	})
}

// A cancelled order begins nothing from then on, ends when its moves have, and gives
// back.
func TestCancelAtAnyTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t, rapid.IntRange(0, 30).Draw(t, "errors"), 0, true)
		for range rapid.IntRange(0, 300).Draw(t, "steps before") {
			w.carryOut(w.step())
			w.tick(200 * time.Millisecond)
		}
		if err := Cancel(w.e, w.now); err != nil {
			t.Fatal(err)
		}
		for n := 0; w.e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_CANCELLED; n++ {
			d := w.step()
			if !d.GiveBack || d.Evict || d.Share != 1 {
				t.Fatalf("%+v", d)
			}
			w.carryOut(d)
			w.tick(200 * time.Millisecond)
			if n > 10 {
				t.Fatalf("it does not end: %v", w.e)
			}
		}
		if !Settled(w.e) || w.seen().UnderWay > 0 {
			t.Fatalf("%v, %+v", w.e, w.seen())
		}
	})
}

// A pause ends by itself, later each time, or when somebody says so, and the stage goes
// on then.
func TestPausesEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t, 100, 0, false)
		for range 80 {
			w.all = append(w.all, &fate{state: "fresh", running: true})
		}
		w.e.EvictAt = nil
		for n := int32(1); n <= 3; n++ {
			for w.e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_PAUSED {
				w.carryOut(w.step())
				w.tick(100 * time.Millisecond)
				if w.now.After(time.Unix(1_800_010_000, 0)) {
					t.Fatalf("no pause although everything fails: %v", w.e)
				}
			}
			if w.e.GetPauses() != n || w.e.GetWhy() == "" {
				t.Fatalf("pause %d: %v", n, w.e)
			}
			ends := w.e.GetPaused().AsTime().Add(pauseTime(n))
			if rapid.Bool().Draw(t, "resume") {
				if err := Resume(w.e, w.now); err != nil {
					t.Fatal(err)
				}
			} else {
				for w.now.Before(ends) {
					if d := w.step(); d.New+d.Again > 0 || w.e.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_PAUSED {
						t.Fatalf("%+v in the pause, until %v", d, ends)
					}
					w.tick(500 * time.Millisecond)
				}
			}
			w.errors = 0
			w.carryOut(w.step())
			if w.e.GetState() == siroccov1.EvacuationState_EVACUATION_STATE_PAUSED {
				t.Fatalf("it goes on pausing: %v", w.e)
			}
			w.errors = 100
			for range 80 {
				w.all = append(w.all, &fate{state: "fresh", running: true})
			}
		}
	})
}
