package relay

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// way is one of the ways to the same server.
type way struct {
	name   string
	client *http.Client
	url    string
}

// ways serves h and returns the ways to it: plain HTTP, TLS, and TLS through
// relay, link and agent, with HTTP/1.1 and h2; then the same with the agent's
// socket on this machine.
func ways(b *testing.B, h http.HandlerFunc) []way {
	b.Helper()
	plain, secure := httptest.NewServer(h), httptest.NewTLSServer(h)
	b.Cleanup(plain.Close)
	b.Cleanup(secure.Close)
	g := newRig(b, Config{})
	through := func(local bool) *siroccov1.Sandbox {
		a := g.agent()
		if local {
			g.relay.router.dialer.Local(a.address, a.listenLocal())
		}
		sb := g.accept(&siroccov1.Port{Port: 8000})
		a.listen(sb.GetId(), 8000, plain.Listener.Addr().String())
		return g.placed(sb, a)
	}
	far, near := through(false), through(true)
	direct := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // a benchmark
	b.Cleanup(direct.CloseIdleConnections)
	return []way{
		{"plain", direct, plain.URL}, {"tls", direct, secure.URL},
		{"relay", g.client(false), g.url(far, "/")}, {"relay-h2", g.client(true), g.url(far, "/")},
		{"local", g.client(false), g.url(near, "/")}, {"local-h2", g.client(true), g.url(near, "/")},
	}
}

// reportCPU adds what the benchmark's loop took of the processors, all ends
// included: on a busy machine a steadier figure than the time.
func reportCPU(b *testing.B, before time.Duration, per float64, unit string) {
	b.ReportMetric(float64((cpuTime()-before).Microseconds())/per, unit)
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLatency is one small request after another on one connection.
func BenchmarkLatency(b *testing.B) {
	for _, w := range ways(b, hello) {
		b.Run(w.name, func(b *testing.B) {
			var times []time.Duration
			before := cpuTime()
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				get(b, w.client, w.url)
				times = append(times, time.Since(start))
			}
			reportCPU(b, before, float64(b.N), "cpu-µs/op")
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
		})
	}
}

// BenchmarkRequests is small requests on 64 connections.
func BenchmarkRequests(b *testing.B) {
	for _, w := range ways(b, hello) {
		b.Run(w.name, func(b *testing.B) {
			before := cpuTime()
			b.SetParallelism(64 / runtime.GOMAXPROCS(0))
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					get(b, w.client, w.url)
				}
			})
			reportCPU(b, before, float64(b.N), "cpu-µs/op")
		})
	}
}

// BenchmarkThroughput downloads over many connections.
func BenchmarkThroughput(b *testing.B) {
	const size = 16 << 20
	chunk := make([]byte, 256<<10)
	for _, w := range ways(b, func(w http.ResponseWriter, _ *http.Request) {
		for range size / len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}) {
		for _, conns := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%d", w.name, conns), func(b *testing.B) {
				b.SetBytes(size * int64(conns))
				before := cpuTime()
				for b.Loop() {
					var wg sync.WaitGroup
					for range conns {
						wg.Go(func() {
							resp, err := w.client.Get(w.url)
							if err != nil {
								b.Error(err)
								return
							}
							defer func() { _ = resp.Body.Close() }()
							if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
								b.Error(n, err)
							}
						})
					}
					wg.Wait()
				}
				reportCPU(b, before, float64(b.N*conns)*size/1e6, "cpu-µs/MB")
			})
		}
	}
}
