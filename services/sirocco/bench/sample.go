package bench

import (
	"math"
	"slices"
	"sync"
	"time"
)

// Sample is one time that was taken.
type Sample struct {
	// At is when what was measured began, from the start of the measurement.
	At time.Duration
	// Took is how long it took.
	Took time.Duration
}

// Samples collects times. The zero value is ready; its methods may be called
// concurrently.
type Samples struct {
	mu  sync.Mutex
	all []Sample
}

// Add adds a time.
func (s *Samples) Add(at, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, Sample{at, took})
}

// All returns the samples so far, by when they began.
func (s *Samples) All() []Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := slices.Clone(s.all)
	slices.SortFunc(all, func(a, b Sample) int { return int(a.At - b.At) })
	return all
}

// Distribution returns the distribution of the samples so far.
func (s *Samples) Distribution() Distribution { return Distribute(s.All()) }

// Distribution of times in milliseconds, by nearest rank: p99 is the smallest
// sample that at least 99 of 100 do not exceed.
type Distribution struct {
	N    int     `json:"n"`
	Min  float64 `json:"min"`
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
	Mean float64 `json:"mean"`
}

// Distribute returns the distribution of samples; all zero for none.
func Distribute(samples []Sample) Distribution {
	if len(samples) == 0 {
		return Distribution{}
	}
	times := make([]time.Duration, len(samples))
	var sum time.Duration
	for i, s := range samples {
		times[i] = s.Took
		sum += s.Took
	}
	slices.Sort(times)
	rank := func(p float64) float64 {
		return Millis(times[max(int(math.Ceil(p*float64(len(times))))-1, 0)])
	}
	return Distribution{
		N: len(times), Min: Millis(times[0]), P50: rank(.50), P95: rank(.95), P99: rank(.99), Max: Millis(times[len(times)-1]),
		Mean: Millis(sum / time.Duration(len(times))),
	}
}

// Millis is a time in milliseconds, with two digits behind the point.
func Millis(d time.Duration) float64 { return round(float64(d) / float64(time.Millisecond)) }

// round keeps two digits behind the point.
func round(f float64) float64 { return math.Round(f*100) / 100 }

// Series is a figure over time, such as how many sandboxes live. The zero value
// is ready; its methods may be called concurrently.
type Series struct {
	mu     sync.Mutex
	points []Point
}

// Point is a place in a plot.
type Point struct{ X, Y float64 }

// Add adds the figure at a time from the start of the measurement.
func (s *Series) Add(at time.Duration, value float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.points = append(s.points, Point{at.Seconds(), value})
}

// Points returns what was added so far: seconds and values.
func (s *Series) Points() []Point {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.points)
}
