package pool

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func drawRules(t *rapid.T) Rules {
	return Rules{
		BudgetBytes: rapid.Int64Range(0, 200).Draw(t, "budget") << 20,
		Reserve:     Room{rapid.Int64Range(0, 30).Draw(t, "reserve") << 20, rapid.IntRange(0, 5).Draw(t, "reserved slots")},
		Parallel:    rapid.IntRange(1, 4).Draw(t, "parallel"),
		Patience:    time.Duration(rapid.IntRange(0, 3).Draw(t, "patience")) * time.Second,
		MaxAge:      time.Duration(rapid.SampledFrom([]int{0, 60}).Draw(t, "max age")) * time.Minute,
	}
}

func drawState(t *rapid.T, now time.Time) State {
	s := State{
		Free: Room{rapid.Int64Range(0, 250).Draw(t, "free") << 20, rapid.IntRange(0, 30).Draw(t, "slots")},
		Busy: rapid.IntRange(-2, 2).Draw(t, "busy"), Lull: rapid.Bool().Draw(t, "lull"), Ready: rapid.Bool().Draw(t, "ready"),
	}
	s.Busy = max(s.Busy, 0)
	if s.Busy > 0 {
		s.BusySince = now.Add(-time.Duration(rapid.IntRange(0, 5).Draw(t, "busy since")) * time.Second)
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "templates") {
		p := fmt.Sprintf("t%d ", i)
		tp := Template{
			Key: fmt.Sprintf("t%d", i), Version: "v1",
			Min: rapid.IntRange(0, 8).Draw(t, p+"min"), Max: rapid.IntRange(0, 20).Draw(t, p+"max"),
			CostBytes: rapid.Int64Range(0, 30).Draw(t, p+"cost") << 20,
			Building:  rapid.IntRange(0, 2).Draw(t, p+"building"),
			BuildTime: time.Duration(rapid.IntRange(0, 2000).Draw(t, p+"build ms")) * time.Millisecond,
		}
		for range rapid.IntRange(0, 10).Draw(t, p+"arrivals") {
			tp.Demand.Arrived(now.Add(-time.Duration(rapid.IntRange(0, 1000).Draw(t, p+"ago"))*time.Second), rapid.IntRange(1, 40).Draw(t, p+"n"))
		}
		for j := range rapid.IntRange(0, 12).Draw(t, p+"warm") {
			tp.Warm = append(tp.Warm, Warm{
				ID: fmt.Sprintf("t%d-%d", i, j), Version: rapid.SampledFrom([]string{"v1", "v1", "v1", "v0"}).Draw(t, p+"version"),
				BuiltAt: now.Add(-time.Duration(rapid.IntRange(-5, 70).Draw(t, p+"age")) * time.Minute),
			})
		}
		s.Templates = append(s.Templates, tp)
	}
	return s
}

func (s State) held() Room {
	var sum Room
	for _, t := range s.Templates {
		sum = sum.plus(t.CostBytes, len(t.Warm)+t.Building)
	}
	return sum
}

func (s State) at(key string) *Template {
	return &s.Templates[slices.IndexFunc(s.Templates, func(t Template) bool { return t.Key == key })]
}

// after is the state once a decision has been carried out, and what was being
// built before it is warm.
func (s State) after(d Decision, now time.Time) State {
	s.Templates = slices.Clone(s.Templates)
	for i := range s.Templates {
		t := &s.Templates[i]
		t.Warm = slices.Clone(t.Warm)
		for n := range t.Building {
			t.Warm = append(t.Warm, Warm{ID: fmt.Sprintf("%s-%d-%d", t.Key, now.UnixNano(), n), Version: t.Version, BuiltAt: now})
		}
		t.Building = 0
	}
	for _, drop := range d.Drop {
		t := s.at(drop.Template)
		t.Warm = slices.DeleteFunc(t.Warm, func(w Warm) bool { return w.ID == drop.ID })
	}
	for _, key := range d.Build {
		s.at(key).Building++
	}
	return s
}

func (r Rules) room(s State) Room {
	return Room{min(r.BudgetBytes, s.Free.MemoryBytes), s.Free.Sandboxes}
}

// TestPlanIsSafe holds the properties that every plan has.
func TestPlanIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, s := drawRules(t), drawState(t, start)
		d := r.Plan(start, s)

		held, building := s.held(), 0
		for _, tp := range s.Templates {
			building += tp.Building
		}
		for _, key := range d.Build {
			held = held.plus(s.at(key).CostBytes, 1)
		}
		if len(d.Build) > 0 {
			if !held.fits(r.room(s).minus(r.Reserve)) {
				t.Fatalf("builds %v lead to %+v of %+v", d.Build, held, r.room(s))
			}
			if building+len(d.Build) > r.Parallel {
				t.Fatalf("%d builds beside %d, %d at a time", len(d.Build), building, r.Parallel)
			}
			if s.Busy > 0 && s.Ready && (r.Patience == 0 || start.Sub(s.BusySince) < r.Patience || building+len(d.Build) > 1) {
				t.Fatalf("builds %v in front of %d claims", d.Build, s.Busy)
			}
		}
		dropped := map[string]bool{}
		kept := s.held()
		for _, drop := range d.Drop {
			tp := s.at(drop.Template)
			i := slices.IndexFunc(tp.Warm, func(w Warm) bool { return w.ID == drop.ID })
			if i < 0 || dropped[drop.ID] {
				t.Fatalf("%+v is not warm, or dropped twice", drop)
			}
			dropped[drop.ID] = true
			kept = kept.plus(tp.CostBytes, -1)
			if drop.Why == Unused || drop.Why == Outbid {
				if slices.Contains(d.Build, drop.Template) {
					t.Fatalf("%s is built and dropped", drop.Template)
				}
				if s.Busy > 0 && s.Ready && (drop.Why == Unused || r.Patience == 0 || start.Sub(s.BusySince) < r.Patience) {
					t.Fatalf("%+v at a busy moment", drop)
				}
			}
			if drop.Why == Outdated != (tp.Warm[i].Version != tp.Version) {
				t.Fatalf("%+v: it has %s, wanted is %s", drop, tp.Warm[i].Version, tp.Version)
			}
			// The oldest goes first.
			for _, other := range tp.Warm {
				if drop.Why != Outdated && drop.Why != Stale && other.BuiltAt.Before(tp.Warm[i].BuiltAt) && !dropped[other.ID] {
					t.Fatalf("%+v, and not the older %+v", drop, other)
				}
			}
		}
		all := 0
		for _, tp := range s.Templates {
			all += len(tp.Warm)
			n := 0
			for _, w := range tp.Warm {
				switch {
				case dropped[w.ID]:
					continue
				case w.Version != tp.Version:
					t.Fatalf("an outdated one is kept: %+v", w)
				case r.MaxAge > 0 && start.Sub(w.BuiltAt) >= r.MaxAge:
					t.Fatalf("a stale one is kept: %+v", w)
				}
				n++
			}
			if s.Ready && s.Busy == 0 && n > 0 && n+tp.Building > max(tp.Min, tp.Max) {
				t.Fatalf("%d of %s are kept, %d at most", n, tp.Key, max(tp.Min, tp.Max))
			}
		}
		if !kept.fits(r.room(s)) && len(d.Drop) < all {
			t.Fatalf("%+v are kept in %+v, and only %d of %d dropped", kept, r.room(s), len(d.Drop), all)
		}
	})
}

// TestSamePlan: the same input gives the same plan, in whatever order templates
// and warm ones come; and the input is left as it was.
func TestSamePlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, s := drawRules(t), drawState(t, start)
		before := s.after(Decision{}, start)
		d := r.Plan(start, s)
		if !reflect.DeepEqual(before, s.after(Decision{}, start)) {
			t.Fatal("the plan changed its input")
		}
		s.Templates = rapid.Permutation(s.Templates).Draw(t, "order")
		for i := range s.Templates {
			s.Templates[i].Warm = rapid.Permutation(s.Templates[i].Warm).Draw(t, "warm order")
		}
		if again := r.Plan(start, s); !reflect.DeepEqual(again, d) {
			t.Fatalf("%+v, then %+v", d, again)
		}
	})
}

// TestComesToRest: carried out again and again, plans end, and what is built on
// the way is not dropped on the way. At rest the declared minimums are there,
// or as large a part of each as fits.
func TestComesToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, s := drawRules(t), drawState(t, start)
		s.Busy, s.Lull = 0, false
		built := map[string]int{}
		for round := range 400 {
			d := r.Plan(start, s)
			building := s.held().Sandboxes
			for _, tp := range s.Templates {
				building -= len(tp.Warm)
			}
			if len(d.Build)+len(d.Drop)+building == 0 {
				atRest(t, r, s, d)
				return
			}
			for _, key := range d.Build {
				built[key]++
			}
			for _, drop := range d.Drop {
				if built[drop.Template] > 0 && drop.Why != Stale && drop.Why != Outdated && s.held().fits(r.room(s)) {
					t.Fatalf("round %d drops %+v, of which %d were built", round, drop, built[drop.Template])
				}
			}
			s = s.after(d, start)
		}
		t.Fatal("plans do not come to rest")
	})
}

func atRest(t *rapid.T, r Rules, s State, d Decision) {
	if !d.Filled {
		t.Fatalf("at rest, but not filled: %+v", s)
	}
	room := r.room(s).minus(r.Reserve)
	var declared Room
	for _, tp := range s.Templates {
		declared = declared.plus(tp.CostBytes, tp.Min)
	}
	if declared.fits(room) {
		for _, tp := range s.Templates {
			// Room may be taken by what was there before, as far as it is near its goal.
			if len(tp.Warm) < tp.Min-slack(tp.Min) && s.held().plus(tp.CostBytes, 1).fits(room) {
				t.Fatalf("%s has %d of %d declared, with room for more", tp.Key, len(tp.Warm), tp.Min)
			}
		}
	}
}

// TestDeclaredFill: an empty node fills what is declared whatever else goes on,
// all of it if it fits and each by about the same part if it does not.
func TestDeclaredFill(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Rules{BudgetBytes: rapid.Int64Range(0, 400).Draw(t, "budget"), Parallel: 3}
		s := State{Free: Room{1 << 40, 1 << 20}, Busy: rapid.IntRange(0, 3).Draw(t, "busy")}
		for i := range rapid.IntRange(1, 5).Draw(t, "templates") {
			s.Templates = append(s.Templates, Template{Key: fmt.Sprint(i), Min: rapid.IntRange(1, 20).Draw(t, "min"), CostBytes: rapid.Int64Range(1, 5).Draw(t, "cost")})
		}
		d := r.Plan(start, s)
		for len(d.Build) > 0 || s.held().Sandboxes > 0 && !d.Filled {
			s = s.after(d, start)
			d = r.Plan(start, s)
		}
		var declared int64
		least, largest := 1.0, int64(0)
		for _, tp := range s.Templates {
			declared += int64(tp.Min) * tp.CostBytes
			least = min(least, float64(len(tp.Warm)+1)/float64(tp.Min))
			largest = max(largest, tp.CostBytes)
		}
		if !d.Filled {
			t.Fatal("not filled")
		}
		held := s.held().MemoryBytes
		for _, tp := range s.Templates {
			if declared <= r.BudgetBytes && len(tp.Warm) != tp.Min {
				t.Fatalf("%s has %d of %d", tp.Key, len(tp.Warm), tp.Min)
			}
			// Cut by the same part, but for one that rounding decides.
			if float64(len(tp.Warm)-1)/float64(tp.Min) > least {
				t.Fatalf("%s has %d of %d, another only %v: %+v", tp.Key, len(tp.Warm), tp.Min, least, s)
			}
		}
		if declared > r.BudgetBytes && held+largest*int64(len(s.Templates)) < r.BudgetBytes {
			t.Fatalf("%d of %d are used, %d declared", held, r.BudgetBytes, declared)
		}
	})
}

// TestBurst: 100 claims at once from a declared pool of 128, which is then
// filled again, behind them.
func TestBurst(t *testing.T) {
	const cost = 12 << 20
	r := Rules{BudgetBytes: 4 << 30, Parallel: 2, MaxAge: time.Hour}
	now := start
	s := State{Free: Room{16 << 30, 1000}, Templates: []Template{{Key: "base", Min: 128, Max: 128, CostBytes: cost, BuildTime: 70 * time.Millisecond}}}
	fill := func() {
		t.Helper()
		for round := 0; ; round++ {
			d := r.Plan(now, s)
			if len(d.Drop) > 0 {
				t.Fatalf("round %d drops %v", round, d.Drop)
			}
			if d.Filled {
				break
			}
			if len(d.Build) != 2 || round > 70 {
				t.Fatalf("round %d builds %v with %d warm", round, d.Build, len(s.Templates[0].Warm))
			}
			now = now.Add(70 * time.Millisecond)
			s = s.after(d, now).after(Decision{}, now)
		}
	}
	fill()
	s.Ready = true
	base := &s.Templates[0]
	base.Warm = base.Warm[100:]
	base.Demand.Arrived(now, 100)
	s.Busy = 100
	s.Free = Room{s.Free.MemoryBytes - 100*cost, 900}
	if d := r.Plan(now, s); len(d.Build)+len(d.Drop) > 0 {
		t.Fatalf("in the burst: %+v", d)
	}
	s.Busy = 0
	fill()
	if n := len(s.Templates[0].Warm); n != 128 {
		t.Fatalf("%d after the burst", n)
	}
}

// TestMostValuableFirst: with room for few, those that are claimed most get it,
// and those that are not give way.
func TestMostValuableFirst(t *testing.T) {
	busy, now := steady(10, 5*time.Minute)
	rare, _ := steady(1, time.Second)
	r := Rules{BudgetBytes: 12, Parallel: 12}
	s := State{Ready: true, Free: Room{1000, 100}, Templates: []Template{
		{Key: "busy", Max: 100, CostBytes: 1, Demand: busy},
		{Key: "once", Max: 100, CostBytes: 1, Demand: rare},
	}}
	for i := range 12 {
		s.Templates[1].Warm = append(s.Templates[1].Warm, Warm{ID: fmt.Sprint(i), BuiltAt: start})
	}
	for range 10 {
		s = s.after(r.Plan(now, s), now)
	}
	if n := len(s.at("busy").Warm); n < 8 {
		t.Fatalf("%d of the busy one, %d of the other", n, len(s.at("once").Warm))
	}
	// Without pressure, both have what they need.
	r.BudgetBytes = 100
	for range 40 {
		s = s.after(r.Plan(now, s), now)
	}
	if n := len(s.at("once").Warm); n < 1 {
		t.Fatalf("%d of the one that was used a while ago", n)
	}
	// In the end nothing is kept for those that nobody uses.
	for now := now.Add(Lately); len(s.at("once").Warm)+len(s.at("busy").Warm) > 0; now = now.Add(time.Second) {
		d := r.Plan(now, s)
		if len(d.Build) > 0 || len(d.Drop) == 0 {
			t.Fatalf("unused: %+v", d)
		}
		s = s.after(d, now)
	}
}

// TestNoFlapping: a steady load that claims and refills never has a warm one
// dropped, with a budget that is short as well.
func TestNoFlapping(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Rules{BudgetBytes: rapid.Int64Range(5, 60).Draw(t, "budget"), Parallel: 2}
		rates := rapid.SliceOfN(rapid.IntRange(0, 8), 1, 4).Draw(t, "rates")
		s := State{Ready: true, Free: Room{1000, 1000}}
		for i := range rates {
			s.Templates = append(s.Templates, Template{Key: fmt.Sprint(i), Max: 100, CostBytes: 1, BuildTime: 50 * time.Millisecond})
		}
		now, drops, claims := start, 0, 0
		for tick := range 20 * 100 { // 100 s, each with 20 plans
			now = now.Add(50 * time.Millisecond)
			for i, rate := range rates {
				if rate == 0 || tick%(20/min(rate, 20)) != 0 {
					continue
				}
				tp := &s.Templates[i]
				tp.Demand.Arrived(now, 1)
				claims++
				if len(tp.Warm) > 0 {
					tp.Warm = tp.Warm[1:]
				}
			}
			d := r.Plan(now, s)
			drops += len(d.Drop)
			s = s.after(d, now)
		}
		if drops > claims/50 {
			t.Fatalf("%d dropped for %d claims", drops, claims)
		}
	})
}

// TestFailedBuild: a template whose build fails is not tried at once, and does
// not keep the node from being ready, or others from being built.
func TestFailedBuild(t *testing.T) {
	r := Rules{BudgetBytes: 100, Parallel: 2}
	s := State{Free: Room{100, 100}, Templates: []Template{
		{Key: "bad", Min: 5, CostBytes: 1, NotBefore: start.Add(time.Second)}, {Key: "good", Min: 1, CostBytes: 1},
	}}
	d := r.Plan(start, s)
	if !slices.Equal(d.Build, []string{"good"}) || d.Filled {
		t.Fatalf("%+v", d)
	}
	s = s.after(d, start)
	s = s.after(Decision{}, start)
	if d := r.Plan(start, s); !d.Filled || len(d.Build) > 0 {
		t.Fatalf("%+v", d)
	}
	if d := r.Plan(start.Add(time.Second), s); d.Filled || !slices.Equal(d.Build, []string{"bad", "bad"}) {
		t.Fatalf("%+v", d)
	}
}

// TestAges: those that were built together are not given up together, and none
// is older than allowed.
func TestAges(t *testing.T) {
	r := Rules{BudgetBytes: 1 << 30, Parallel: 2, MaxAge: time.Hour}
	s := State{Ready: true, Free: Room{1 << 30, 1000}, Templates: []Template{{Key: "a", Min: 128}}}
	for i := range 128 {
		s.Templates[0].Warm = append(s.Templates[0].Warm, Warm{ID: fmt.Sprint("w", i), BuiltAt: start})
	}
	dropped := 0
	for age := time.Duration(0); age <= time.Hour; age += time.Minute {
		d := r.Plan(start.Add(age), s)
		if len(d.Drop) > 30 || age < 45*time.Minute && len(d.Drop) > 0 {
			t.Fatalf("%d dropped at once after %v", len(d.Drop), age)
		}
		dropped += len(d.Drop)
		d.Build = nil
		s = s.after(d, start)
	}
	if dropped != 128 {
		t.Fatalf("%d of 128 dropped", dropped)
	}
}

// BenchmarkPlan: 50 templates with 128 warm ones each, with room for all and
// with room for half.
func BenchmarkPlan(b *testing.B) {
	for name, budget := range map[string]int64{"room": 1 << 40, "pressure": 25 * 128 * 12 << 20} {
		b.Run(name, func(b *testing.B) {
			r := Rules{BudgetBytes: budget, Parallel: 3, MaxAge: time.Hour}
			s := State{Ready: true, Free: Room{1 << 40, 1 << 20}}
			demand, now := steady(20, time.Minute)
			for i := range 50 {
				tp := Template{Key: fmt.Sprintf("template-%d", i), Version: "sha256:0123456789abcdef", Max: 256, CostBytes: 12 << 20, BuildTime: 70 * time.Millisecond, Demand: demand}
				for j := range 128 {
					tp.Warm = append(tp.Warm, Warm{ID: fmt.Sprintf("w-%d-%d", i, j), Version: tp.Version, BuiltAt: now})
				}
				s.Templates = append(s.Templates, tp)
			}
			for d := r.Plan(now, s); len(d.Build)+len(d.Drop) > 0; d = r.Plan(now, s) {
				s = s.after(s.builtAtOnce(d), now)
			}
			b.ReportAllocs()
			for b.Loop() {
				r.Plan(now, s)
			}
		})
	}
}

// builtAtOnce drops what a decision drops and builds nothing.
func (s State) builtAtOnce(d Decision) Decision { return Decision{Drop: d.Drop} }

// TestNearlyFull: on a node whose free room goes up and down with the sandboxes
// that come and go, by less than the reserve, nothing is built and dropped again.
func TestNearlyFull(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		demand, now := steady(20, 5*time.Minute)
		r := Rules{BudgetBytes: 1000, Reserve: Room{0, rapid.IntRange(5, 20).Draw(t, "reserve")}, Parallel: 2}
		s := State{Ready: true, Templates: []Template{{Key: "a", Max: 1000, CostBytes: 1, Demand: demand}}}
		least := rapid.IntRange(20, 40).Draw(t, "free")
		for range 200 {
			s.Free = Room{1000, least + rapid.IntRange(0, r.Reserve.Sandboxes).Draw(t, "more")}
			d := r.Plan(now, s)
			for _, drop := range d.Drop {
				if drop.Why != Unused || s.held().Sandboxes < 8 {
					t.Fatalf("%+v of %d in %+v", drop, s.held().Sandboxes, s.Free)
				}
			}
			s = s.after(d, now)
		}
	})
}

// TestPatience: claims that never pause hold up refilling for so long and no
// longer, and then all of it but one at a time.
func TestPatience(t *testing.T) {
	r := Rules{BudgetBytes: 100, Parallel: 3, Patience: 5 * time.Second}
	s := State{Ready: true, Busy: 1, BusySince: start, Free: Room{100, 100}, Templates: []Template{{Key: "a", Min: 9, CostBytes: 1}}}
	for after, want := range map[time.Duration]int{0: 0, 5*time.Second - 1: 0, 5 * time.Second: 1} {
		if d := r.Plan(start.Add(after), s); len(d.Build) != want {
			t.Errorf("%v busy: builds %v, want %d", after, d.Build, want)
		}
	}
	s.Templates[0].Building = 1
	if d := r.Plan(start.Add(time.Minute), s); len(d.Build) != 0 {
		t.Errorf("builds %v beside another", d.Build)
	}
	s.Busy = 0
	if d := r.Plan(start.Add(time.Minute), s); len(d.Build) != 2 {
		t.Errorf("builds %v in a quiet moment", d.Build)
	}
}

// TestLull: after a start only what is about to run empty is built, and before the
// node is ready everything.
func TestLull(t *testing.T) {
	r := Rules{BudgetBytes: 100, Parallel: 9}
	s := State{Ready: true, Lull: true, Free: Room{100, 100}, Templates: []Template{{Key: "a", Min: 7, CostBytes: 1}}}
	for held, want := range map[int]int{0: 4, 3: 1, 4: 0, 6: 0} {
		s.Templates[0].Building = held
		r.Parallel = held + 9
		if d := r.Plan(start, s); len(d.Build) != want {
			t.Errorf("with %d of 7: builds %v, want %d", held, d.Build, want)
		}
	}
	s.Ready, s.Templates[0].Building, r.Parallel = false, 6, 9
	if d := r.Plan(start, s); len(d.Build) != 1 {
		t.Errorf("before the node is ready: builds %v", d.Build)
	}
}
