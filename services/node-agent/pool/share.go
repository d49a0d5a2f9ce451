package pool

import (
	"cmp"
	"math"
	"slices"
)

// halvings of an interval find a share to one part in four thousand million.
const halvings = 32

// share sets each pool's goal: how many it should hold for all goals to fit
// into room. Declared minimums come first; if even they do not fit, each is cut
// by the same part. What demand asks for beyond them is cut by a price: a
// template keeps as many as are claimed with a chance that is worth their part
// of the room, and the price rises until all fit. Each unit of room so goes
// where it is most likely to be claimed (marginal analysis; B. Fox, "Discrete
// optimization via marginal analysis", 1966), without looking at each unit.
func share(pools []pool, room Room, learn bool) {
	minimums := func(part float64) bool {
		return within(pools, room, func(p *pool) int { return int(part * float64(p.Min)) })
	}
	if !minimums(1) {
		minimums(search(minimums))
		fillUp(pools, room)
		return
	}
	if !learn || within(pools, room, func(p *pool) int { return p.wish }) {
		return
	}
	cheapest := math.Inf(1)
	for i := range pools {
		cheapest = min(cheapest, pools[i].part(room))
	}
	// At a price of 1, not even a sure claim is worth the cheapest's part.
	demand := func(price float64) bool {
		return within(pools, room, func(p *pool) int {
			chance := max(beyondSafety, price*p.part(room)/cheapest)
			return p.bounded(p.ahead.units(chance))
		})
	}
	demand(1 - search(func(cheap float64) bool { return demand(1 - cheap) }))
}

// search returns the largest number from 0 to 1 for which fits holds; it holds
// for 0.
func search(fits func(float64) bool) float64 {
	low, high := 0.0, 1.0
	for range halvings {
		if middle := (low + high) / 2; fits(middle) {
			low = middle
		} else {
			high = middle
		}
	}
	return low
}

// within sets all goals and says whether they fit.
func within(pools []pool, room Room, goal func(*pool) int) bool {
	var sum Room
	for i := range pools {
		p := &pools[i]
		p.goal = goal(p)
		sum = sum.plus(p.CostBytes, p.goal)
	}
	return sum.fits(room)
}

// fillUp gives what rounding has left over to the pools that are furthest from
// their minimum, one each.
func fillUp(pools []pool, room Room) {
	var sum Room
	order := make([]*pool, 0, len(pools))
	for i := range pools {
		p := &pools[i]
		sum = sum.plus(p.CostBytes, p.goal)
		if p.goal < p.Min {
			order = append(order, p)
		}
	}
	slices.SortFunc(order, func(a, b *pool) int {
		return cmp.Or(cmp.Compare(a.goal*b.Min, b.goal*a.Min), cmp.Compare(a.Key, b.Key))
	})
	for _, p := range order {
		if more := sum.plus(p.CostBytes, 1); more.fits(room) {
			sum = more
			p.goal++
		}
	}
}

// part is how much of the room one sandbox takes, of what it takes most of
// (dominant share; Ghodsi et al., "Dominant Resource Fairness", 2011).
func (p *pool) part(room Room) float64 {
	return max(float64(p.CostBytes)/math.Max(float64(room.MemoryBytes), 1), 1/math.Max(float64(room.Sandboxes), 1))
}

func (r Room) plus(costBytes int64, n int) Room {
	return Room{r.MemoryBytes + costBytes*int64(n), r.Sandboxes + n}
}

func (r Room) minus(o Room) Room {
	return Room{max(r.MemoryBytes-o.MemoryBytes, 0), max(r.Sandboxes-o.Sandboxes, 0)}
}

func (r Room) fits(room Room) bool {
	return r.MemoryBytes <= room.MemoryBytes && r.Sandboxes <= room.Sandboxes
}
