package gvisor_test

import (
	"fmt"
	"io"
	"sync"
	"testing"
)

// TestBurstOfDials: gVisor's control server lets few callers wait, but no burst
// of clients is refused.
func TestBurstOfDials(t *testing.T) {
	rt := open(t)
	sb := create(t, rt, spec(t, "sb-burst", "serve"))
	ask(t, sb, "env")
	var wg sync.WaitGroup
	for range 500 {
		wg.Go(func() {
			c, err := sb.Dial(t.Context(), 8000)
			if err != nil {
				t.Error(err)
				return
			}
			_ = c.Close()
		})
	}
	wg.Wait()
}

// BenchmarkStreams downloads from a server in a sandbox over many connections:
// what the tunnel has to carry, without the tunnel.
func BenchmarkStreams(b *testing.B) {
	const size = 512 << 20
	rt := open(b)
	sb := create(b, rt, spec(b, "sb-flow", "serve"))
	ask(b, sb, "env")
	for _, conns := range []int{1, 64} {
		b.Run(fmt.Sprint(conns), func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				var wg sync.WaitGroup
				for range conns {
					wg.Go(func() {
						c := dial(b, sb)
						defer func() { _ = c.Close() }()
						fmt.Fprintf(c, "zeros %d\n", size/conns)
						if n, err := io.CopyBuffer(discard{}, c, make([]byte, 128<<10)); n != size/int64(conns) || err != nil {
							b.Errorf("%d bytes came, %v; want %d", n, err, size/conns)
						}
					})
				}
				wg.Wait()
			}
		})
	}
}

// discard has none of the shortcuts of io.Discard.
type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
