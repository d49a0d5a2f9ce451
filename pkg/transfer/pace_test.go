package transfer

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// way is a link and a content, as a simulation has them. Speeds are bytes per second.
type way struct {
	link, memory, make, zstd, ratio float64
	buffer                          float64 // bytes that the link takes at once
}

// run sends parts as send does, two goroutines and a queue between them, in simulated
// time, and returns the seconds until the last byte is through the link. p is nil for
// parts that all go as always says.
func (w way) run(parts int, p *pace, always bool) (seconds float64, compressed int) {
	var made, written, level, levelAt float64
	var begun []float64 // when the writer took each part
	duration := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	for i := range parts {
		if i > depth {
			made = max(made, begun[i-depth-1])
		}
		made += partSize / w.make
		squeeze := always
		if p != nil {
			squeeze = p.compress()
		}
		bytes := float64(partSize)
		if squeeze {
			made += partSize / w.zstd
			taken := 1/w.ratio <= worthwhile
			if taken {
				bytes /= w.ratio
				compressed++
			}
			squeeze = taken
			if p != nil {
				p.compressed(partSize, int(bytes), duration(partSize/w.zstd))
			}
		}
		begin := max(made, written)
		begun = append(begun, begin)
		waited := begin - written
		level = max(0, level-(begin-levelAt)*w.link)
		took := bytes / w.memory
		if over := level + bytes - w.buffer; over > 0 {
			took = max(took, over/w.link)
		}
		level = max(0, level+bytes-took*w.link)
		written = begin + took
		levelAt = written
		if p != nil {
			p.wrote(int(bytes), squeeze, duration(waited), duration(took))
		}
	}
	return written + level/w.link, compressed
}

func anyWay(t *rapid.T) way {
	return way{
		link:   rapid.Float64Range(1<<20, 4<<30).Draw(t, "link"),
		memory: 4 << 30, make: 2 << 30,
		zstd:   rapid.Float64Range(100<<20, 900<<20).Draw(t, "zstd"),
		ratio:  rapid.Float64Range(1, 10).Draw(t, "ratio"),
		buffer: rapid.Float64Range(64<<10, 8<<20).Draw(t, "buffer"),
	}
}

// Deciding costs little against knowing: over any link, with any content, the parts are
// through nearly as soon as they would be in the better of the two forms.
func TestPaceIsNearTheBest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, parts := anyWay(t), rapid.IntRange(1, 2000).Draw(t, "parts")
		if rapid.Bool().Draw(t, "slow") {
			w.link /= 20
		}
		plain, _ := w.run(parts, nil, false)
		squeezed, _ := w.run(parts, nil, true)
		got, n := w.run(parts, &pace{}, false)
		// What is found out costs a few parts in the wrong form, at the beginning; what
		// the buffer takes is no sign of how fast the link is.
		learn := (w.buffer + 12*partSize) * max(1/w.link, 1/w.zstd)
		if best := min(plain, squeezed); got > 1.2*best+learn {
			t.Fatalf("%d parts take %.3f s (%d compressed); plain %.3f s, compressed %.3f s", parts, got, n, plain, squeezed)
		}
	})
}

func TestPaceChooses(t *testing.T) {
	const parts = 1000
	for name, c := range map[string]struct {
		way         way
		least, most int // compressed parts
	}{
		"slow link, text":         {way{link: 20 << 20, zstd: 300 << 20, ratio: 3}, parts * 9 / 10, parts},
		"slow link, noise":        {way{link: 20 << 20, zstd: 8 << 30, ratio: 1}, 0, 0},
		"fast link, text":         {way{link: 2 << 30, zstd: 300 << 20, ratio: 3}, 0, 0},
		"link beats compressor":   {way{link: 400 << 20, zstd: 300 << 20, ratio: 3}, 0, parts / 20},
		"compressor beats link":   {way{link: 200 << 20, zstd: 300 << 20, ratio: 3}, parts * 3 / 4, parts},
		"hardly anything is left": {way{link: 100 << 20, zstd: 600 << 20, ratio: 50}, parts * 3 / 4, parts},
	} {
		t.Run(name, func(t *testing.T) {
			c.way.memory, c.way.make, c.way.buffer = 4<<30, 2<<30, 4<<20
			_, n := c.way.run(parts, &pace{}, false)
			if n < c.least || n > c.most {
				t.Errorf("%d of %d parts were compressed, want %d to %d", n, parts, c.least, c.most)
			}
		})
	}
}

// Link and content change, and it follows within few parts.
func TestPaceFollows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := &pace{}
		slow := way{link: 20 << 20, memory: 4 << 30, make: 2 << 30, zstd: 300 << 20, ratio: 3, buffer: 1 << 20}
		fast, noise := slow, slow
		fast.link = 2 << 30
		noise.ratio, noise.zstd = 1, 8<<30
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			now := rapid.SampledFrom([]string{"slow", "fast", "noise"}).Draw(t, "now")
			w, want := map[string]way{"slow": slow, "fast": fast, "noise": noise}[now], 0
			if now == "slow" {
				want = 50
			}
			w.run(400, p, false) // time to find out
			if _, n := w.run(50, p, false); n < want*8/10 || now != "slow" && n > 5 {
				t.Fatalf("%s: %d of 50 parts were compressed", now, n)
			}
		}
	})
}

// Whatever it is told, it answers.
func TestPaceSurvives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := &pace{}
		some := rapid.Custom(func(t *rapid.T) time.Duration {
			return time.Duration(rapid.Int64Range(-1, int64(time.Hour)).Draw(t, "ns"))
		})
		for range rapid.IntRange(1, 100).Draw(t, "parts") {
			n := rapid.IntRange(1, partSize).Draw(t, "n")
			c := p.compress()
			if c {
				p.compressed(n, rapid.IntRange(0, n).Draw(t, "out"), some.Draw(t, "took"))
			}
			p.wrote(n, c, some.Draw(t, "waited"), some.Draw(t, "took"))
			if g := p.measured(); g < 0 || g != g {
				t.Fatalf("gain %v of %+v", g, p)
			}
		}
	})
}
