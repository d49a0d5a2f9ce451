package quota

import (
	"math"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func anyLimits(t *rapid.T) Limits {
	return Limits{
		Live: rapid.IntRange(0, 5).Draw(t, "live"), MemoryBytes: int64(rapid.IntRange(0, 100).Draw(t, "memory")),
		Rate: rapid.SampledFrom([]float64{0, 0.01, 0.3, 1, 7, 50}).Draw(t, "rate"), Burst: rapid.IntRange(0, 8).Draw(t, "burst"),
	}
}

// However creates come, no stretch of time sees more of them than the burst and
// what the rate gives in it; and who waits as told gets in.
func TestRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := anyLimits(t)
		if l.Rate == 0 {
			l.Rate = 3
		}
		var b Bucket
		now := time.Unix(1000, 0)
		var taken []time.Time
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(2*time.Second)).Draw(t, "pass")))
			wait := b.Take(l, now)
			if wait == 0 {
				taken = append(taken, now)
				continue
			}
			if least := 1 / l.Rate; wait.Seconds() > least+1e-4 {
				t.Fatalf("wait of %v, where a create is due every %v s", wait, least)
			}
			if rapid.Bool().Draw(t, "patient") {
				now = now.Add(wait)
				if again := b.Take(l, now); again != 0 {
					t.Fatalf("after the wait of %v another of %v", wait, again)
				}
				taken = append(taken, now)
			}
		}
		for i := range taken {
			for j := i; j < len(taken); j++ {
				most := l.burst() + taken[j].Sub(taken[i]).Seconds()*l.Rate
				if float64(j-i+1) > most+1e-3 {
					t.Fatalf("%d creates within %v, %v allowed", j-i+1, taken[j].Sub(taken[i]), most)
				}
			}
		}
	})
}

// Whatever the clock does, a tenant never gets more than one burst at a moment,
// never waits for longer than one burst takes, and gets in after that.
func TestClockJumps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := anyLimits(t)
		if l.Rate == 0 {
			l.Rate = 3
		}
		var b Bucket
		now := time.Unix(1e9, 0)
		for range rapid.IntRange(1, 10).Draw(t, "jumps") {
			now = now.Add(time.Duration(rapid.Int64Range(-1e18, 1e18).Draw(t, "jump")))
			for range rapid.IntRange(0, 600).Draw(t, "others") {
				b.Charge(l, now)
			}
			in := 0
			for ; in < 2000 && b.Take(l, now) == 0; in++ {
			}
			if float64(in) > l.burst() {
				t.Fatalf("%d at once, %v allowed", in, l.burst())
			}
			wait := b.Take(l, now)
			if limit := (l.burst() + 1) / l.Rate; wait <= 0 || wait.Seconds() > limit+1e-3 {
				t.Fatalf("a wait of %v; one burst takes %v s", wait, limit)
			}
			now = now.Add(wait)
			if b.Take(l, now) != 0 {
				t.Fatal("not in after the wait")
			}
		}
		if !b.Full(l, now.Add(time.Duration(math.Min(3*l.burst()/l.Rate, 1e6)*float64(time.Second)))) {
			t.Fatal("never good again")
		}
	})
}

// What is let in never passes a limit, what is refused would, and a refusal says
// which one and takes nothing.
func TestAdmit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := anyLimits(t)
		var b Bucket
		var have Usage
		now := time.Unix(1000, 0)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "pass")))
			more := Usage{Live: 1, MemoryBytes: int64(rapid.IntRange(0, 40).Draw(t, "more"))}
			untouched := b
			untouched.settle(l, now)
			f := l.Admit(have, more, &b, now)
			with := have.Add(more)
			overLive, overMemory := l.Live > 0 && with.Live > l.Live, l.MemoryBytes > 0 && with.MemoryBytes > l.MemoryBytes
			if f == nil {
				if overLive || overMemory {
					t.Fatalf("%+v let in beyond %+v", with, l)
				}
				have = with
				continue
			}
			if f.Code != fault.Quota || f.Scope != "tenant" {
				t.Fatalf("%+v", f)
			}
			switch f.Field {
			case Live:
				if !overLive || b.spent != untouched.spent {
					t.Fatalf("%v with %+v of %+v", f, have, l)
				}
			case Memory:
				if !overMemory || b.spent != untouched.spent || (f.RetryAfter == 0) != (more.MemoryBytes > l.MemoryBytes) {
					t.Fatalf("%v with %+v of %+v", f, have, l)
				}
			case CreateRate:
				if l.Rate == 0 || f.RetryAfter <= 0 || b.spent != untouched.spent {
					t.Fatalf("%v with %+v of %+v", f, b, l)
				}
			default:
				t.Fatalf("the refusal names no limit: %+v", f)
			}
		}
	})
}

// A tenant's own limits replace the region's, one by one.
func TestWith(t *testing.T) {
	region := Limits{Live: 10, Rate: 50, Burst: 70, MemoryBytes: 1 << 30}
	if got := region.With(nil); got != region {
		t.Errorf("without own: %+v", got)
	}
	if got := region.With(&siroccov1.QuotaLimits{Live: proto.Int32(0)}); got.Live != 0 || got.Rate != 50 || got.Burst != 70 {
		t.Errorf("any number live: %+v", got)
	}
	got := region.With(&siroccov1.QuotaLimits{CreateRate: proto.Float64(2), MemoryBytes: proto.Int64(5)})
	if got != (Limits{Live: 10, Rate: 2, MemoryBytes: 5}) || got.Message().GetCreateBurst() != 20 {
		t.Errorf("own rate: %+v, burst %d", got, got.Message().GetCreateBurst())
	}
	for _, bad := range []Limits{{Live: -1}, {Rate: math.NaN()}, {Rate: -1}, {Rate: math.Inf(1)}, {Rate: 1e-9}, {Burst: -1}, {MemoryBytes: -1}} {
		if fault.CodeOf(bad.Check()) != fault.InvalidArgument {
			t.Errorf("%+v is fine", bad)
		}
	}
}
