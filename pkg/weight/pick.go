package weight

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Request is what a region is picked for.
type Request struct {
	// Allowed are the regions that the request allows; empty means any.
	Allowed []string
	// Nearest is the region that is nearest to the client; empty if not known.
	Nearest string
	// Random is a random number in [0,1), a fresh one for each request. The same
	// number gives the same region.
	Random float64
}

// Reason says why a region was picked.
type Reason string

// The reasons, as text for people.
const (
	ByNearest    Reason = "nearest to the client and healthy"
	ByWeight     Reason = "by weight"
	ByOnly       Reason = "the only one that is allowed and alive"
	ByLastResort Reason = "all that are allowed and alive have been drained; this one the least"
)

// NoRegionError says that there is no region for a request. Waiting may help,
// unless Unknown names all that are allowed.
type NoRegionError struct {
	// Dead are allowed but gone, Closed by a person; Unknown are allowed and none
	// of the regions that there are.
	Dead, Closed, Unknown []string
}

// Error names the regions and why each is none.
func (e *NoRegionError) Error() string {
	var why []string
	for _, group := range [...]struct {
		what  string
		names []string
	}{{"dead", e.Dead}, {"closed by an operator", e.Closed}, {"not known", e.Unknown}} {
		if len(group.names) > 0 {
			why = append(why, fmt.Sprintf("%s: %s", group.what, strings.Join(group.names, ", ")))
		}
	}
	if len(why) == 0 {
		return "pick a region: there is none"
	}
	return "pick a region: " + strings.Join(why, "; ")
}

// Pick chooses the region of a new sandbox. The client's nearest is preferred
// with a chance of its level: always when it is healthy, and less and less often
// while it drains, so that its clients slide away as all others do. Otherwise
// the weights decide among those that are allowed, without the nearest unless it
// alone is left. A region that is dead or that a person has closed is never
// picked; one that was drained to nothing is, if there is no other. When there is
// none the error is a *[NoRegionError].
func Pick(regions []Decision, req Request) (string, Reason, error) {
	var (
		nearest, last *Decision
		total, others float64
		open          int
	)
	for i := range regions {
		d := &regions[i]
		if !req.open(d) {
			continue
		}
		open++
		total += d.Weight
		if d.Region == req.Nearest {
			nearest = d
		} else {
			others += d.Weight
		}
		if last == nil || d.Level > last.Level || d.Level == last.Level && d.Score > last.Score {
			last = d
		}
	}
	random := min(unit(req.Random), math.Nextafter(1, 0))
	switch {
	case open == 0:
		return "", "", req.refusal(regions)
	case open == 1:
		return last.Region, ByOnly, nil
	case total <= 0:
		return last.Region, ByLastResort, nil
	case nearest == nil:
		return req.draw(regions, random*total, "").Region, ByWeight, nil
	case random < nearest.Level:
		return nearest.Region, ByNearest, nil
	case others <= 0:
		return nearest.Region, ByWeight, nil
	}
	// What is left of the random number is uniform again.
	random = (random - nearest.Level) / (1 - nearest.Level)
	return req.draw(regions, random*others, req.Nearest).Region, ByWeight, nil
}

// open says whether a region may be picked at all.
func (r *Request) open(d *Decision) bool {
	return d.Alive() && !d.Closed() && (len(r.Allowed) == 0 || slices.Contains(r.Allowed, d.Region))
}

// draw returns the open region, but not the one left out, at a point of the line
// on which they lie one after the other, each as long as its weight. One at least
// has a weight.
func (r *Request) draw(regions []Decision, at float64, without string) *Decision {
	var d *Decision
	for i := range regions {
		if next := &regions[i]; next.Weight > 0 && next.Region != without && r.open(next) {
			d = next
			if at -= d.Weight; at < 0 {
				break
			}
		}
	}
	return d
}

// refusal says why none of the regions may be picked.
func (r *Request) refusal(regions []Decision) *NoRegionError {
	e := &NoRegionError{}
	for _, d := range regions {
		switch {
		case len(r.Allowed) > 0 && !slices.Contains(r.Allowed, d.Region):
		case !d.Alive():
			e.Dead = append(e.Dead, d.Region)
		default:
			e.Closed = append(e.Closed, d.Region)
		}
	}
	for _, name := range r.Allowed {
		if !slices.ContainsFunc(regions, func(d Decision) bool { return d.Region == name }) {
			e.Unknown = append(e.Unknown, name)
		}
	}
	return e
}
