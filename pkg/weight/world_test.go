package weight

import (
	"fmt"
	"math"
	"time"

	"pgregory.net/rapid"
)

// healthy is a region as it should be, with room for many.
func healthy(name string) Region {
	return Region{
		Name: name, Score: 1, Known: true, Capacity: 1000, Live: 400, Creates: 4,
		Free: 600, Warm: 50, StartRate: 20,
	}
}

// fleet is n healthy regions: a, b, c, …
func fleet(n int) []Region {
	out := make([]Region, n)
	for i := range out {
		out[i] = healthy(string(rune('a' + i)))
	}
	return out
}

// run makes steps of a second, and returns the last decisions.
func run(c Config, s *State, now *time.Time, regions []Region, steps int) []Decision {
	var d []Decision
	for range steps {
		*now = now.Add(time.Second)
		*s, d = c.Step(*s, regions, *now)
	}
	return d
}

// moment is what one step of a history gets.
type moment struct {
	now     time.Time
	regions []Region
}

// drawStep draws by how much the clock moves; wild clocks jump.
func drawStep(t *rapid.T, wild bool) time.Duration {
	if wild && rapid.IntRange(0, 9).Draw(t, "jump") == 0 {
		return time.Duration(rapid.SampledFrom([]int64{-1e18, -1e9, 0, 1, 3600e9, 1e18}).Draw(t, "dt"))
	}
	return time.Duration(rapid.Int64Range(1, int64(5*time.Second)).Draw(t, "dt"))
}

// drawWild draws histories of anything: regions come, go, die and come back,
// grow, shrink, are set by persons; numbers may be none, clocks jump.
func drawWild(t *rapid.T, overrides bool) []moment {
	quantity := rapid.OneOf(rapid.Float64Range(0, 2000), rapid.SampledFrom([]float64{0, 0, -1, math.NaN(), math.Inf(1), 1e300, 1e-300}))
	score := rapid.OneOf(rapid.Float64Range(0, 1), rapid.SampledFrom([]float64{0, 1, 1, 1, 0.9, math.NaN(), -3, 7}))
	capacity := rapid.OneOf(rapid.Just(1000.0), rapid.Float64Range(1, 5000), quantity)
	now := start
	out := make([]moment, rapid.IntRange(1, 15).Draw(t, "steps"))
	for i := range out {
		now = now.Add(drawStep(t, true))
		m := moment{now: now}
		for j := range rapid.IntRange(0, 5).Draw(t, "regions") {
			p := fmt.Sprintf("%d.%d ", i, j)
			r := Region{
				Name: string(rune('a' + j)), Dead: rapid.IntRange(0, 5).Draw(t, p+"dead") == 0,
				Score: score.Draw(t, p+"score"), Known: rapid.IntRange(0, 5).Draw(t, p+"unknown") > 0,
				Capacity: capacity.Draw(t, p+"capacity"), Live: quantity.Draw(t, p+"live"), Creates: quantity.Draw(t, p+"creates"),
				Free: quantity.Draw(t, p+"free"), Warm: quantity.Draw(t, p+"warm"), StartRate: quantity.Draw(t, p+"rate"),
			}
			if overrides && rapid.IntRange(0, 4).Draw(t, p+"override") == 0 {
				r.Override = &Override{
					Level: rapid.OneOf(score, rapid.Just(0.0)).Draw(t, p+"level"),
					Until: now.Add(time.Duration(rapid.Int64Range(-5e9, 20e9).Draw(t, p+"until"))),
				}
			}
			m.regions = append(m.regions, r)
		}
		out[i] = m
	}
	return out
}

// drawSteady draws histories of regions that keep their capacity and live: only
// scores and what they can start change, and what persons said holds throughout.
// So nothing takes effect at once after the first step.
func drawSteady(t *rapid.T) []moment {
	n := rapid.IntRange(1, 5).Draw(t, "regions")
	regions := fleet(n)
	for i := range regions {
		regions[i].Capacity = rapid.Float64Range(1, 5000).Draw(t, "capacity")
		regions[i].Live = rapid.OneOf(rapid.Just(0.0), rapid.Float64Range(0, 1000)).Draw(t, "live")
		if rapid.IntRange(0, 3).Draw(t, "override") == 0 {
			regions[i].Override = &Override{Level: rapid.SampledFrom([]float64{0, 0.2, 1}).Draw(t, "level"), Until: start.Add(time.Hour)}
		}
	}
	now := start
	out := make([]moment, rapid.IntRange(1, 30).Draw(t, "steps"))
	for i := range out {
		now = now.Add(drawStep(t, false))
		m := moment{now: now, regions: append([]Region(nil), regions...)}
		for j := range m.regions {
			r := &m.regions[j]
			r.Score = rapid.SampledFrom([]float64{0, 0.3, 0.7, 0.9, 1, 1}).Draw(t, "score")
			r.Known = rapid.IntRange(0, 9).Draw(t, "unknown") > 0
			r.Free = rapid.SampledFrom([]float64{0, 1, 1000}).Draw(t, "free")
			r.Warm = rapid.SampledFrom([]float64{0, 10, 100}).Draw(t, "warm")
			r.StartRate = rapid.SampledFrom([]float64{0, 1, 20}).Draw(t, "rate")
		}
		out[i] = m
	}
	return out
}
