package bench_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"pgregory.net/rapid"
)

func TestDistributeByNearestRank(t *testing.T) {
	var times []time.Duration
	for i := range 100 {
		times = append(times, time.Duration(100-i)*time.Millisecond)
	}
	got := bench.Distribute(times)
	want := bench.Distribution{Min: 1, P50: 50, P95: 95, P99: 99, Max: 100, Mean: 50.5}
	if got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	if got := bench.Distribute(nil); got != (bench.Distribution{}) {
		t.Fatalf("of nothing: %+v", got)
	}
}

func TestDistributionIsOrderedAndMadeOfSamples(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		millis := rapid.SliceOfN(rapid.Int64Range(0, 100_000), 1, 200).Draw(t, "ms")
		var times []time.Duration
		for _, m := range millis {
			times = append(times, time.Duration(m)*time.Millisecond)
		}
		d := bench.Distribute(times)
		if !slices.IsSorted([]float64{d.Min, d.P50, d.P95, d.P99, d.Max}) {
			t.Fatalf("not ordered: %+v", d)
		}
		for _, v := range []float64{d.Min, d.P50, d.P95, d.P99, d.Max} {
			if !slices.Contains(millis, int64(v)) {
				t.Fatalf("%v is no sample of %v", v, millis)
			}
		}
	})
}

func TestSummarizeCountsFailuresByCode(t *testing.T) {
	busy := &sirocco.Error{Code: sirocco.NoCapacity, Message: "full"}
	r := bench.Summarize(bench.Burst, []bench.Sample{
		{Create: time.Millisecond, TTI: 2 * time.Millisecond}, {Err: busy}, {Err: busy}, {Err: errors.New("odd")},
	}, 2*time.Second)
	if r.N != 4 || r.Succeeded != 1 || r.Failures["no_capacity"] != 2 || r.Failures["internal"] != 1 || r.PerSecond != .5 || r.TTI.P99 != 2 {
		t.Fatalf("got %+v", r)
	}
	if r.Example != "no_capacity: full" {
		t.Errorf("got %q", r.Example)
	}
}
