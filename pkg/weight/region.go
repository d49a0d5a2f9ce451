package weight

import "time"

// Region is what a controller knows of a region at one time. Quantities are in
// sandboxes, or all of them in another unit that is the same for all regions.
// What is negative or no number counts as zero.
type Region struct {
	// Name is unique among the regions of a step.
	Name string
	// Dead: it is known to be gone. A region without capacity counts as dead.
	Dead bool
	// Score is its health, 0 to 1, if Known; see [Health]. While it is not known,
	// level and direction stay.
	Score float64
	Known bool
	// Capacity is how many it can hold, Live how many it holds, dead or alive.
	Capacity, Live float64
	// Creates is how many a second are created there now.
	Creates float64
	// Free is how many more it can take, Warm how many it has ready, and StartRate
	// how many a second it can start beside those. They bound how fast it gets a
	// larger share.
	Free, Warm, StartRate float64
	// Override is a person's word, or nil.
	Override *Override
}

// Override is a person's word about a region. Until it expires it beats all that
// the controller would decide, but not death. Afterwards the controller goes on
// from there, sliding.
type Override struct {
	// Level, 0 to 1, takes the place of the region's level: 0 closes it for new
	// sandboxes, 1 gives it its whole share by capacity.
	Level float64 `json:"level"`
	// Until is when it ends; from then on it is as if it were not there.
	Until time.Time `json:"until"`
	// By and Why are for those who wonder.
	By  string `json:"by,omitempty"`
	Why string `json:"why,omitempty"`
}

// holds says whether there is an override at a time.
func (o *Override) holds(now time.Time) bool { return o != nil && now.Before(o.Until) }

// alive is what of the capacity counts.
func (r *Region) alive() float64 {
	if c := amount(r.Capacity); !r.Dead && c > tiny {
		return c
	}
	return 0
}

// level is what an override sets: so little that it would be lost in sums is
// nothing.
func (o *Override) level() float64 {
	if l := unit(o.Level); l > tiny {
		return l
	}
	return 0
}

// intake is how many sandboxes a region can take in a time: what is warm, within
// one second, and what it starts beside that, but not more than fit.
func (r *Region) intake(dt time.Duration) float64 {
	s := dt.Seconds()
	return min(amount(r.Free), amount(r.Warm)*min(s, 1)+amount(r.StartRate)*s)
}
