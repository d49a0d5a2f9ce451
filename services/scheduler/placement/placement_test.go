package placement

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func drawAmount(t *rapid.T, name string, most int64) Amount {
	return Amount{
		CPUMillis:   rapid.Int64Range(0, 8000*most).Draw(t, name+"cpu"),
		MemoryBytes: rapid.Int64Range(0, 32*most).Draw(t, name+"mem") << 30,
		DiskBytes:   rapid.Int64Range(0, 100*most).Draw(t, name+"disk") << 30,
		Sandboxes:   rapid.Int64Range(0, 100*most).Draw(t, name+"n"),
	}
}

func drawStanding(t *rapid.T, name string) Standing {
	return Standing{
		Latency:  time.Duration(rapid.IntRange(0, 500).Draw(t, name+"latency")) * time.Millisecond,
		Trust:    rapid.Float64Range(0, 1).Draw(t, name+"trust"),
		Failures: rapid.Float64Range(0, 1).Draw(t, name+"failures"),
	}
}

func drawNodes(t *rapid.T, least int) []Node {
	out := make([]Node, rapid.IntRange(least, 12).Draw(t, "nodes"))
	for i := range out {
		p := fmt.Sprintf("node%d ", i)
		out[i] = Node{
			Name: fmt.Sprintf("n%d", i), Region: rapid.SampledFrom([]string{"eu", "us"}).Draw(t, p+"region"),
			Capacity: drawAmount(t, p+"cap", 2), Used: drawAmount(t, p+"used", 1),
			Ready: rapid.Bool().Draw(t, p+"ready"), Cordoned: rapid.Bool().Draw(t, p+"cordoned"),
			Suspect: rapid.Bool().Draw(t, p+"suspect"), Warm: rapid.Int32Range(-1, 2).Draw(t, p+"warm"),
			Standing: drawStanding(t, p),
		}
	}
	return out
}

func drawRequest(t *rapid.T) Request {
	return Request{
		ID:      rapid.String().Draw(t, "id"),
		Regions: rapid.SliceOfN(rapid.SampledFrom([]string{"eu", "us"}), 0, 2).Draw(t, "regions"),
		Except:  rapid.SliceOfN(rapid.SampledFrom([]string{"n0", "n1", "n2"}), 0, 2).Draw(t, "except"),
		Need:    Amount{rapid.Int64Range(0, 4000).Draw(t, "cpu"), rapid.Int64Range(0, 8).Draw(t, "mem") << 30, rapid.Int64Range(0, 10).Draw(t, "disk") << 30, 1},
	}
}

func drawRules(t *rapid.T) Rules {
	return Rules{
		Policy:     rapid.SampledFrom([]Policy{Spread, Pack}).Draw(t, "policy"),
		Candidates: rapid.IntRange(0, 13).Draw(t, "candidates"),
	}
}

// TestRankIsSafe holds the properties that every plan has.
func TestRankIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ns, req, rules := drawNodes(t, 0), drawRequest(t), drawRules(t)
		plan := rules.Rank(ns, req)
		byName := map[string]Node{}
		for _, n := range ns {
			byName[n.Name] = n
		}
		seen := map[string]bool{}
		for _, c := range plan.Candidates {
			n := byName[c.Node]
			free := n.Capacity.Sub(n.Used).Sub(req.Need)
			if free.CPUMillis < 0 || free.MemoryBytes < 0 || free.DiskBytes < 0 || free.Sandboxes < 0 {
				t.Fatalf("capacity exceeded on %+v", n)
			}
			if n.Cordoned || !n.Ready || n.Suspect || slices.Contains(req.Except, n.Name) || seen[n.Name] {
				t.Fatalf("placement on %+v", n)
			}
			if len(req.Regions) > 0 && !slices.Contains(req.Regions, n.Region) {
				t.Fatalf("placement outside the regions %v: %+v", req.Regions, n)
			}
			seen[n.Name] = true
		}
		refused := 0
		for why := NotReady; why < reasons; why++ {
			refused += plan.Refused(why)
		}
		if plan.Fit+refused != len(ns) {
			t.Fatalf("%d fit and %d refused of %d nodes", plan.Fit, refused, len(ns))
		}
		most := rules.Candidates
		if most == 0 {
			most = DefaultCandidates
		}
		if len(plan.Candidates) != min(plan.Fit, most) {
			t.Fatalf("%d candidates of %d that fit, at most %d", len(plan.Candidates), plan.Fit, most)
		}
	})
}

// TestSamePlan: the same input gives the same plan, in whatever order the nodes
// come; and fewer candidates are the first of more.
func TestSamePlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ns, req, rules := drawNodes(t, 0), drawRequest(t), drawRules(t)
		plan := rules.Rank(ns, req)
		ns = rapid.Permutation(ns).Draw(t, "order")
		if again := rules.Rank(ns, req); !reflect.DeepEqual(again, plan) {
			t.Fatalf("the order of the nodes changed the plan: %v, then %v", plan, again)
		}
		all := Rules{Policy: rules.Policy, Candidates: len(ns) + 1}.Rank(ns, req)
		if !slices.Equal(plan.Candidates, all.Candidates[:len(plan.Candidates)]) {
			t.Fatalf("the best are %v, of all %v", plan.Candidates, all.Candidates)
		}
	})
}

// TestSoundNodesFirst: a node that is slow or fails is not preferred to one that
// is otherwise equal and as the fleet is; one with a warm sandbox is.
func TestSoundNodesFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		usual := time.Duration(rapid.IntRange(10, 5000).Draw(t, "usual")) * time.Millisecond
		usualFailures := rapid.Float64Range(0, 0.5).Draw(t, "usual failures")
		sound := Node{
			Ready: true, Capacity: Amount{8000, 32 << 30, 100 << 30, 100}, Used: drawAmount(t, "", 1),
			Warm: rapid.Int32Range(0, 1).Draw(t, "warm"), Standing: Standing{Latency: usual, Trust: 1, Failures: usualFailures},
		}
		sound.Used = Amount{sound.Used.CPUMillis / 2, sound.Used.MemoryBytes / 2, 0, sound.Used.Sandboxes / 2}
		ns := []Node{sound, sound, sound, sound}
		for i := range ns {
			ns[i].Name = fmt.Sprintf("n%d", i)
		}
		worse := rapid.IntRange(0, 3).Draw(t, "worse")
		rules := drawRules(t)
		rules.Candidates = 4
		what := rapid.SampledFrom([]string{"slow", "failing", "fails fast", "cold"}).Draw(t, "what")
		switch s := &ns[worse].Standing; what {
		case "slow":
			s.Latency = time.Duration(float64(usual) * rapid.Float64Range(2.2, 100).Draw(t, "times"))
			s.Trust = rapid.Float64Range(0.1, 1).Draw(t, "trust")
		case "failing":
			s.Failures = usualFailures + rapid.Float64Range(0.04, 0.5).Draw(t, "more")
		case "fails fast":
			s.Failures, s.Latency = usualFailures+0.3, time.Millisecond
		case "cold":
			for i := range ns {
				ns[i].Warm = 1
			}
			ns[worse].Warm = 0
		}
		id := rapid.StringMatching(`[a-z]{8}`).Draw(t, "id")
		plan := rules.Rank(ns, Request{ID: id, Need: Amount{100, 1 << 30, 0, 1}})
		if last := plan.Candidates[3]; last.Node != ns[worse].Name {
			t.Fatalf("the one that is %s is %s, and the last is %v: %v", what, ns[worse].Name, last, plan)
		}
		// A fleet that is slow, or fails, as a whole loses nothing.
		for i := range ns {
			if ns[i].Standing = sound.Standing; what == "slow" || what == "failing" {
				ns[i].Standing.Latency *= 10
			}
		}
		for _, c := range rules.Rank(ns, Request{ID: id}).Candidates {
			if c.Slow != 0 || c.Failing != 0 {
				t.Fatalf("all are alike, and one loses: %v", c)
			}
		}
	})
}

// TestFailingWarmNode: a node whose starts all fail is the last, even if it is
// empty, quick and has warm ones.
func TestFailingWarmNode(t *testing.T) {
	full := Amount{8000, 32 << 30, 100 << 30, 100}
	ns := []Node{
		{Name: "bad", Ready: true, Capacity: full, Warm: 9, Standing: Standing{Latency: time.Millisecond, Trust: 1, Failures: 0.6}},
		{Name: "good", Ready: true, Capacity: full, Used: Amount{7000, 30 << 30, 0, 95}, Standing: Standing{Latency: 90 * time.Millisecond, Trust: 1}},
		{Name: "new", Ready: true, Capacity: full, Used: Amount{7000, 30 << 30, 0, 90}},
	}
	for _, policy := range []Policy{Spread, Pack} {
		plan := Rules{Policy: policy}.Rank(ns, Request{ID: "x", Need: Amount{Sandboxes: 1}})
		if got := plan.Candidates[2].Node; got != "bad" {
			t.Errorf("policy %d: %v", policy, plan.Candidates)
		}
	}
}

func names(p Plan) []string {
	var out []string
	for _, c := range p.Candidates {
		out = append(out, c.Node)
	}
	return out
}

func TestPolicies(t *testing.T) {
	full := Amount{8000, 32 << 30, 100 << 30, 100}
	ns := []Node{
		{Name: "empty", Ready: true, Capacity: full},
		{Name: "half", Ready: true, Capacity: full, Used: Amount{4000, 16 << 30, 0, 50}},
		{Name: "warm", Ready: true, Capacity: full, Used: Amount{7000, 28 << 30, 0, 90}, Warm: 1},
		{Name: "full", Ready: true, Capacity: full, Used: full, Warm: 100},
	}
	req := Request{ID: "x", Need: Amount{100, 1 << 30, 0, 1}}
	if got := names(Rules{Policy: Spread}.Rank(ns, req)); !slices.Equal(got, []string{"warm", "empty", "half"}) {
		t.Errorf("spread: %v", got)
	}
	if got := names(Rules{Policy: Pack}.Rank(ns, req)); !slices.Equal(got, []string{"warm", "half", "empty"}) {
		t.Errorf("pack: %v", got)
	}
}

// TestTiesAreShared: equal nodes get equal shares of many sandboxes.
func TestTiesAreShared(t *testing.T) {
	ns := make([]Node, 10)
	for i := range ns {
		ns[i] = Node{Name: fmt.Sprintf("node-%d", i), Ready: true, Capacity: Amount{Sandboxes: 10}}
	}
	got := map[string]int{}
	for i := range 10_000 {
		got[Rules{}.Rank(ns, Request{ID: fmt.Sprintf("sb-%d", i)}).Candidates[0].Node]++
	}
	for name, n := range got {
		if n < 700 || n > 1300 {
			t.Errorf("%s got %d of 10,000", name, n)
		}
	}
}

func TestExplain(t *testing.T) {
	fits := Amount{1000, 1 << 30, 0, 10}
	ns := []Node{
		{Name: "a", Ready: true}, {Name: "b", Ready: true}, {Name: "c", Ready: true, Capacity: Amount{MemoryBytes: 1 << 30, Sandboxes: 1}},
		{Name: "d", Ready: true, Cordoned: true},
	}
	req := Request{ID: "x", Need: Amount{500, 1, 0, 1}}
	p := Rules{}.Rank(ns, req)
	if got, want := p.Explain(), "no node fits: slots on 2, cordoned on 1, cpu on 1"; got != want {
		t.Errorf("Explain() = %q, want %q", got, want)
	}
	if p.Scope() != "node" {
		t.Errorf("Scope() = %q", p.Scope())
	}
	if got := (Plan{}).Explain(); got != "no node fits: there are no nodes" {
		t.Errorf("without nodes: %q", got)
	}
	ns = append(ns,
		Node{Name: "e", Ready: true, Capacity: fits, Warm: 2, Standing: Standing{Latency: 10 * time.Millisecond, Trust: 1}},
		Node{Name: "f", Ready: true, Capacity: fits, Standing: Standing{Latency: time.Second, Trust: 0.1, Failures: 0.1}},
	)
	p = Rules{}.Rank(ns, req)
	if got, want := p.Explain(), "e: load 0.50, warm, score 1.50; next f: load 0.50, slow -0.25, failing -0.50, score -0.25; 2 fit; slots on 2, cordoned on 1, cpu on 1"; got != want {
		t.Errorf("Explain() = %q, want %q", got, want)
	}
}

// TestBuckets: the median is at least the true one and less than a quarter
// above it.
func TestBuckets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(1, 1<<60).Draw(t, "duration"))
		b := bucket(d)
		if end := bucketEnd(b); end < d || b < 4*64 && float64(end) > 1.25*float64(d)+1 {
			t.Fatalf("%d is in the bucket %d, which ends at %d", d, b, end)
		}
		if next := bucket(d + 1); next < b {
			t.Fatalf("%d is in the bucket %d, the next in %d", d, b, next)
		}
	})
}

func TestTrack(t *testing.T) {
	now := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
	var tr Track
	if got := tr.Standing(now); got != (Standing{}) {
		t.Fatalf("nothing seen: %+v", got)
	}
	tr.Failed(now)
	if got := tr.Standing(now).Failures; math.Abs(got-1.0/6) > 1e-9 {
		t.Fatalf("one failure: %v", got)
	}
	// One of four fails, for a long time.
	for range 600 {
		now = now.Add(time.Second)
		tr.Saw(now, 3, 1, 90*time.Millisecond)
	}
	got := tr.Standing(now)
	if math.Abs(got.Failures-0.25) > 0.02 || got.Latency != 90*time.Millisecond || got.Trust != 1 {
		t.Fatalf("one of four: %+v", got)
	}
	// Avoided, it is taken for sound again: it can't show it otherwise.
	for range 300 {
		now = now.Add(time.Second)
		tr.Saw(now, 0, 0, 90*time.Millisecond)
	}
	if got := tr.Standing(now); got.Failures > 0.1 || got.Trust > 0.01 {
		t.Fatalf("after five minutes without a start: %+v", got)
	}
}

// TestTrackStaysSane: whatever is reported at whatever time, shares are shares.
func TestTrackStaysSane(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tr Track
		at := func(name string) time.Time { return time.Unix(0, rapid.Int64().Draw(t, name)) }
		for range rapid.IntRange(0, 20).Draw(t, "reports") {
			tr.Saw(at("at"), rapid.IntRange(-5, 1000).Draw(t, "succeeded"), rapid.IntRange(-5, 1000).Draw(t, "failed"), time.Duration(rapid.IntRange(0, 10).Draw(t, "latency")))
			got := tr.Standing(at("asked"))
			if !(got.Failures >= 0 && got.Failures < 1) || !(got.Trust >= 0 && got.Trust <= 1) {
				t.Fatalf("%+v", got)
			}
		}
	})
}

func BenchmarkRank(b *testing.B) {
	for _, count := range []int{300, 1000} {
		for name, alike := range map[string]bool{"alike": true, "different": false} {
			ns := make([]Node, count)
			for i := range ns {
				ns[i] = Node{
					Name: fmt.Sprintf("node-%d", i), Region: "eu", Ready: true, Capacity: Amount{8000, 32 << 30, 100 << 30, 200},
					Standing: Standing{Latency: 90 * time.Millisecond, Trust: 1},
				}
				if !alike {
					ns[i].Used = Amount{int64(i * 7919 % 7000), int64(i) << 20, 0, int64(i % 190)}
					ns[i].Warm = int32(i % 3)
					ns[i].Standing.Latency += time.Duration(i*7919%300) * time.Millisecond
				}
			}
			b.Run(fmt.Sprintf("%d/%s", count, name), func(b *testing.B) {
				req := Request{ID: "sb-06f2c0jq3xk7v5w1m8nzr4t9ay", Need: Amount{100, 64 << 20, 1 << 30, 1}}
				b.ReportAllocs()
				for b.Loop() {
					Rules{}.Rank(ns, req)
				}
			})
		}
	}
}
