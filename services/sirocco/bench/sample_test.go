package bench

import (
	"errors"
	"slices"
	"testing"
	"time"

	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"pgregory.net/rapid"
)

func TestDistributeByNearestRank(t *testing.T) {
	var samples []Sample
	for i := range 100 {
		samples = append(samples, Sample{Took: time.Duration(100-i) * time.Millisecond})
	}
	got := Distribute(samples)
	want := Distribution{N: 100, Min: 1, P50: 50, P95: 95, P99: 99, Max: 100, Mean: 50.5}
	if got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	if got := Distribute(nil); got != (Distribution{}) {
		t.Fatalf("of nothing: %+v", got)
	}
}

func TestDistributionIsOrderedAndMadeOfSamples(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		millis := rapid.SliceOfN(rapid.Int64Range(0, 100_000), 1, 200).Draw(t, "ms")
		var samples Samples
		for _, m := range millis {
			samples.Add(time.Duration(rapid.Int64Range(0, 1e9).Draw(t, "at")), time.Duration(m)*time.Millisecond)
		}
		d := samples.Distribution()
		if !slices.IsSorted([]float64{d.Min, d.P50, d.P95, d.P99, d.Max}) || d.N != len(millis) {
			t.Fatalf("not ordered: %+v", d)
		}
		for _, v := range []float64{d.Min, d.P50, d.P95, d.P99, d.Max} {
			if !slices.Contains(millis, int64(v)) {
				t.Fatalf("%v is no sample of %v", v, millis)
			}
		}
		if !slices.IsSortedFunc(samples.All(), func(a, b Sample) int { return int(a.At - b.At) }) {
			t.Fatal("not by when they began")
		}
	})
}

func TestFailuresByCode(t *testing.T) {
	var f Failures
	busy := &sirocco.Error{Code: sirocco.NoCapacity, Message: "full"}
	for _, err := range []error{nil, busy, busy, errors.New("odd")} {
		if f.Add(err) != (err != nil) {
			t.Fatalf("%v was taken for the other", err)
		}
	}
	counts, example := f.ByCode()
	if f.Count() != 3 || counts["no_capacity"] != 2 || counts["internal"] != 1 || example != "no_capacity: full" {
		t.Fatalf("got %d, %v, %q", f.Count(), counts, example)
	}
}
