package transfer

import (
	"math"
	"time"
)

// pace decides for each part whether to compress it. Compressing and writing overlap, so
// in compressed form content leaves at min(speed of the compressor, speed of the link ×
// ratio), and as it is at the speed of the link: whatever is more is right. All three are
// measured on what was sent so far.
//
// A link says how fast it is only while it is waited for. Compressed content that comes
// slower than the link takes it says nothing; then a few parts go as they are now and
// then, which costs nothing because the link has time. What the compressor would do with
// the content is tried on one part now and then, the more seldom the more often it was in
// vain, and not at all on a link that is faster than a compressor can be.
//
// It is pure: it is told times and takes none. Not safe for concurrent use.
type pace struct {
	link, speed mean
	// in and out are sizes before and after compressing.
	in, out float64
	on      bool
	// rest is for how many parts nothing is tried, nap what it is set to next.
	rest, nap int
	// idle counts compressed parts for which the link had to wait; probe is how many
	// parts are still to go as they are because of that.
	idle, probe int
}

const (
	// memory is after how many bytes a measurement counts for a third.
	memory = 4 << 20
	// hopedSpeed (bytes/s) and hopedRatio are what a compressor may do at best; they only
	// decide whether it is tried.
	hopedSpeed = 800 << 20
	hopedRatio = 4
	// Compressing must bring this much to begin, and at least that much to go on.
	gainOn, gainOff = 1.15, 1.03
	napMin, napMax  = 2, 64
	// After probeAfter parts that the link waited for, or after as many as take probeCost
	// times as long as one part on the link, up to probeParts go as they are.
	probeAfter, probeCost, probeParts = 32, 20, 4
)

// mean is a speed, of which the latest bytes count most.
type mean struct{ bytes, seconds float64 }

func (m *mean) add(bytes int, took time.Duration) {
	keep := math.Exp(-float64(bytes) / memory)
	m.bytes = m.bytes*keep + float64(bytes)
	m.seconds = m.seconds*keep + max(took, 0).Seconds()
}

// rate returns bytes per second: 0 before the first, +Inf if they took no time.
func (m *mean) rate() float64 {
	if m.bytes == 0 {
		return 0
	}
	return m.bytes / m.seconds
}

// gain is how many times faster content leaves in compressed form, by a speed and a
// ratio.
func (p *pace) gain(speed, ratio float64) float64 {
	link := p.link.rate()
	if link == 0 || math.IsInf(link, 1) {
		return 0
	}
	return min(speed/link, ratio)
}

func (p *pace) measured() float64 {
	if p.in == 0 {
		return 0
	}
	return p.gain(p.speed.rate(), p.in/p.out)
}

// compress says whether to compress the next part.
func (p *pace) compress() bool {
	if p.on {
		if p.measured() < gainOff {
			p.turnOff()
			return false
		}
		if float64(p.idle) >= max(probeAfter, probeCost*p.speed.rate()/p.link.rate()) {
			p.idle, p.probe = 0, probeParts
		}
		if p.probe > 0 {
			p.probe--
			return false
		}
		return true
	}
	if p.gain(hopedSpeed, hopedRatio) < gainOn {
		return false // nothing to hope for; the link may become slower at any time
	}
	if p.rest > 0 {
		p.rest--
		return false
	}
	// Try one, and judge by that one alone: what came before it may have been other content.
	p.speed, p.in, p.out = mean{}, 0, 0
	p.nap = min(max(2*p.nap, napMin), napMax)
	p.rest = p.nap
	return true
}

func (p *pace) turnOff() {
	p.on, p.idle, p.probe, p.rest = false, 0, 0, p.nap
}

// compressed is told what the compressor made of a part: out is in if nothing came of it.
func (p *pace) compressed(in, out int, took time.Duration) {
	p.speed.add(in, took)
	keep := math.Exp(-float64(in) / memory)
	p.in = p.in*keep + float64(in)
	p.out = p.out*keep + float64(max(out, 1))
	if !p.on && p.measured() >= gainOn {
		p.on, p.nap, p.idle = true, 0, 0
	}
}

// smallest is what must be written at once to say something about the link, in bytes.
const smallest = 16 << 10

// wrote is told of a part that was written: its bytes, how long the writer had waited for
// it, and how long writing took.
func (p *pace) wrote(bytes int, compressed bool, waited, took time.Duration) {
	busy := waited <= took/4 // parts come faster than the link takes them
	if compressed {
		if busy {
			p.idle = 0
		} else {
			p.idle++
		}
	} else if busy {
		p.probe = 0 // no time to spare
	}
	switch {
	case bytes < smallest:
	case busy:
		p.link.add(bytes, waited+took)
	case !compressed:
		p.link.add(bytes, took)
	case float64(bytes) > p.link.rate()*(waited+took).Seconds():
		p.link.add(bytes, waited+took) // it takes at least that much
	}
}
