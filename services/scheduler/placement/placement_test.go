package placement

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func nodes(t *rapid.T) []Node {
	amount := func(name string, most int64) Amount {
		return Amount{
			CPUMillis:   rapid.Int64Range(0, 8000*most).Draw(t, name+"cpu"),
			MemoryBytes: rapid.Int64Range(0, 32*most).Draw(t, name+"mem") << 30,
			DiskBytes:   rapid.Int64Range(0, 100*most).Draw(t, name+"disk") << 30,
			Sandboxes:   rapid.Int64Range(0, 100*most).Draw(t, name+"n"),
		}
	}
	out := make([]Node, rapid.IntRange(0, 12).Draw(t, "nodes"))
	for i := range out {
		p := fmt.Sprintf("node%d ", i)
		out[i] = Node{
			Name: fmt.Sprintf("n%d", i), Region: rapid.SampledFrom([]string{"eu", "us"}).Draw(t, p+"region"),
			Capacity: amount(p+"cap", 2), Used: amount(p+"used", 1),
			Ready: rapid.Bool().Draw(t, p+"ready"), Cordoned: rapid.Bool().Draw(t, p+"cordoned"),
			Suspect: rapid.Bool().Draw(t, p+"suspect"), Warm: rapid.Int32Range(0, 2).Draw(t, p+"warm"),
			StartLatency: time.Duration(rapid.IntRange(0, 500).Draw(t, p+"latency")) * time.Millisecond,
		}
	}
	return out
}

func request(t *rapid.T) Request {
	return Request{
		ID: rapid.String().Draw(t, "id"), Regions: rapid.SliceOfN(rapid.SampledFrom([]string{"eu", "us"}), 0, 2).Draw(t, "regions"),
		Need: Amount{rapid.Int64Range(0, 4000).Draw(t, "cpu"), rapid.Int64Range(0, 8).Draw(t, "mem") << 30, rapid.Int64Range(0, 10).Draw(t, "disk") << 30, 1},
	}
}

func TestRankIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ns, req := nodes(t), request(t)
		policy := rapid.SampledFrom([]Policy{Spread, Pack}).Draw(t, "policy")
		plan := Rank(ns, req, policy)
		byName := map[string]Node{}
		for _, n := range ns {
			byName[n.Name] = n
		}
		for _, name := range plan.Candidates {
			n := byName[name]
			free := n.Capacity.Sub(n.Used).Sub(req.Need)
			if free.CPUMillis < 0 || free.MemoryBytes < 0 || free.DiskBytes < 0 || free.Sandboxes < 0 {
				t.Fatalf("capacity exceeded on %+v", n)
			}
			if n.Cordoned || !n.Ready || n.Suspect {
				t.Fatalf("placement on %+v", n)
			}
			if len(req.Regions) > 0 && !slices.Contains(req.Regions, n.Region) {
				t.Fatalf("placement outside the regions %v: %+v", req.Regions, n)
			}
		}
		if len(plan.Candidates)+len(plan.Refusals) != len(ns) {
			t.Fatalf("%d candidates and %d refusals of %d nodes", len(plan.Candidates), len(plan.Refusals), len(ns))
		}
		slices.Reverse(ns)
		if again := Rank(ns, req, policy); !reflect.DeepEqual(again, plan) {
			t.Fatalf("the order of the nodes changed the plan: %v, then %v", plan, again)
		}
	})
}

func TestPolicies(t *testing.T) {
	full := Amount{8000, 32 << 30, 100 << 30, 100}
	ns := []Node{
		{Name: "empty", Ready: true, Capacity: full},
		{Name: "half", Ready: true, Capacity: full, Used: Amount{4000, 16 << 30, 0, 50}},
		{Name: "warm", Ready: true, Capacity: full, Used: Amount{7000, 28 << 30, 0, 90}, Warm: 1},
	}
	req := Request{ID: "x", Need: Amount{100, 1 << 30, 0, 1}}
	if got := Rank(ns, req, Spread).Candidates; !slices.Equal(got, []string{"warm", "empty", "half"}) {
		t.Errorf("spread: %v", got)
	}
	if got := Rank(ns, req, Pack).Candidates; !slices.Equal(got, []string{"warm", "half", "empty"}) {
		t.Errorf("pack: %v", got)
	}
}

func TestExplain(t *testing.T) {
	p := Plan{Refusals: map[string]Reason{"a": OutOfMem, "b": OutOfMem, "c": OutOfMem, "d": Cordoned}}
	if got, want := p.Explain(), "no node fits: memory on 3, cordoned on 1"; got != want {
		t.Errorf("Explain() = %q, want %q", got, want)
	}
	if p.Scope() != "node" {
		t.Errorf("Scope() = %q", p.Scope())
	}
}

func BenchmarkRank300(b *testing.B) {
	ns := make([]Node, 300)
	for i := range ns {
		ns[i] = Node{Name: fmt.Sprintf("n%d", i), Ready: true, Capacity: Amount{8000, 32 << 30, 100 << 30, 200}, Used: Amount{int64(i * 10), int64(i) << 20, 0, int64(i / 3)}}
	}
	for b.Loop() {
		Rank(ns, Request{ID: "x", Need: Amount{100, 64 << 20, 1 << 30, 1}}, Spread)
	}
}
