package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// warm runs the pool only until it has n ready slots, so that refilling does not
// compete with what is measured.
func warm(b *testing.B, p *Pool, n int) {
	p.cfg.PoolSize = n
	stop := running(b, p)
	eventually(b, "a full pool", func() bool { st := p.Stats(); return st.Ready >= n && st.Cleaning == 0 })
	stop()
}

func BenchmarkAcquireReady(b *testing.B) {
	newWorld(b)
	p := newPool(b, Config{Node: "a"})
	ctx := context.Background()
	i := 0
	for b.Loop() {
		b.StopTimer()
		if p.Stats().Ready == 0 {
			warm(b, p, 64)
		}
		id := fmt.Sprintf("sb-%d", i)
		i++
		b.StartTimer()
		if _, err := p.Acquire(ctx, id, Policy{Mode: Open}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		check(b, p.Release(ctx, id))
		b.StartTimer()
	}
}

func BenchmarkAcquireCold(b *testing.B) {
	newWorld(b)
	p := newPool(b, Config{Node: "a"})
	ctx := context.Background()
	i := 0
	for b.Loop() {
		id := fmt.Sprintf("sb-%d", i)
		i++
		if _, err := p.Acquire(ctx, id, Policy{Mode: Open}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		check(b, p.Release(ctx, id))
		b.StartTimer()
	}
}

func BenchmarkRelease(b *testing.B) {
	newWorld(b)
	p := newPool(b, Config{Node: "a"})
	ctx := context.Background()
	i := 0
	for b.Loop() {
		b.StopTimer()
		id := fmt.Sprintf("sb-%d", i)
		i++
		if _, err := p.Acquire(ctx, id, Policy{Mode: Open}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		check(b, p.Release(ctx, id))
	}
}

// BenchmarkTwoThousandSlots makes 2,000 slots, a quarter with ranges of their
// own, and ends them all. Run it with -benchtime 1x.
func BenchmarkTwoThousandSlots(b *testing.B) {
	const n = 2000
	newWorld(b)
	ctx := context.Background()
	for b.Loop() {
		p := newPool(b, Config{Node: "many", CIDR: netip.MustParsePrefix("100.64.0.0/18")})
		before, start := freeMemory(b), time.Now()
		for i := range n {
			policy := Policy{Mode: Open}
			if i%4 == 0 {
				policy = Policy{Mode: Allowed, Allowed: prefixes(site+"/32", "45.33.0.0/16", "20.0.0.0/8", "9.9.9.0/24")}
			}
			acquire(b, p, fmt.Sprintf("sb-%d", i), policy)
		}
		b.ReportMetric(float64(time.Since(start).Milliseconds())/n, "ms/acquire-cold")
		b.ReportMetric(float64(before-freeMemory(b))/n, "kB/slot")
		start = time.Now()
		acquire(b, p, "one-more", Policy{Mode: Allowed, Allowed: prefixes(site + "/32")})
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/acquire-cold-at-2000")
		s := p.Get("one-more")
		start = time.Now()
		for range 100 {
			if _, err := reach(s.NetNS, "tcp", site+":80"); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(time.Since(start).Microseconds())/100, "µs/connection-at-2000")
		start = time.Now()
		for i := range n {
			check(b, p.Release(ctx, fmt.Sprintf("sb-%d", i)))
		}
		b.ReportMetric(float64(time.Since(start).Milliseconds())/n, "ms/release")
	}
}

// freeMemory returns the machine's available memory in kB.
func freeMemory(b *testing.B) int64 {
	raw, err := os.ReadFile("/proc/meminfo")
	check(b, err)
	for line := range strings.Lines(string(raw)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); n == 1 {
			return kb
		}
	}
	b.Fatal("no MemAvailable")
	return 0
}
