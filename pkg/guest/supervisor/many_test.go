package supervisor

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

func openFiles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// TestManyExecs shows that a process that has ended leaves no goroutine, no
// descriptor and little memory.
func TestManyExecs(t *testing.T) {
	w := newWorld(t)
	const n = 3000
	w.run("first", "echo x")
	var before, after runtime.MemStats
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	runtime.GC()
	runtime.ReadMemStats(&before)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := next.Add(1); i <= n; i = next.Add(1) {
				id := fmt.Sprint("e", i)
				if _, err := w.Start(w.ctx, guest.StartRequest{ID: id, Command: []string{"echo", id}}); err != nil {
					t.Errorf("%s: %v", id, err)
					return
				}
				if x, err := w.Wait(w.ctx, id, time.Minute); err != nil || x.End == nil {
					t.Errorf("%s: %+v %v", id, x, err)
				}
			}
		})
	}
	wg.Wait()
	until(t, "everything is archived", func() bool {
		w.s.mu.Lock()
		defer w.s.mu.Unlock()
		return len(w.s.live) == 0
	})
	until(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines+2 })
	until(t, "descriptors are closed", func() bool { return openFiles(t) <= files+1 })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if per := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n; per > 300 {
		t.Errorf("%d bytes of memory for each exec that has ended", per)
	}
	for _, i := range []int{1, n / 2, n} {
		id := fmt.Sprint("e", i)
		if out, _ := w.output(id); out != id+"\n" {
			t.Errorf("%s: %q", id, out)
		}
	}
	if list, err := w.ListExecs(w.ctx); err != nil || len(list) != n+1 {
		t.Errorf("%d execs listed, %v", len(list), err)
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	events := make(chan guest.Event, 100)
	ctx, cancel := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	go func() { ended <- w.Events(ctx, func(v guest.Event) error { events <- v; return nil }) }()
	if v := <-events; v != (guest.Event{}) {
		t.Errorf("%+v", v)
	}
	w.sh(guest.MainExec, "sleep 1000")
	w.sh("other", "sleep 1000")
	for v := range events {
		if v.Running == 1 && v.Started == 1 {
			break
		}
	}
	if _, err := w.MakeDir(w.ctx, w.dir+"/d", 0); err != nil {
		t.Fatal(err)
	}
	for v := range events {
		if v.FileOps == 1 {
			break
		}
	}
	began := time.Now()
	if err := w.Signal(w.ctx, guest.MainExec, "TERM"); err != nil {
		t.Fatal(err)
	}
	for v := range events {
		if v.Main != nil {
			if v.Main.End.Signal != "SIGTERM" {
				t.Errorf("%+v", v.Main)
			}
			break
		}
	}
	if d := time.Since(began); d > eventInterval/2 {
		t.Errorf("the end of main took %v", d)
	}
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Errorf("%v", err)
	}
	// Whoever comes later is told at once.
	if err := w.Events(w.ctx, func(v guest.Event) error {
		if v.Main == nil || v.Running != 1 {
			t.Errorf("%+v", v)
		}
		return guest.ErrLimit
	}); err != guest.ErrLimit {
		t.Errorf("%v", err)
	}
}

func TestNewConnectionReplacesOld(t *testing.T) {
	w := newWorld(t)
	second := w.dial()
	w.over(w.Client)
	if _, err := second.Ping(w.ctx); err != nil {
		t.Fatal(err)
	}
	_, err := w.Ping(w.ctx)
	want(t, err, guest.ErrBroken)
	// One that does not know the secret replaces nothing, and silence ends.
	for range maxGreeting * 2 {
		conn, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if _, err := guest.Dial(w.ctx, func(context.Context) (net.Conn, error) { return net.Dial("tcp", w.addr) }, []byte("wrong")); err == nil {
		t.Fatal("a wrong secret was let in")
	}
	if _, err := second.Ping(w.ctx); err != nil {
		t.Fatal(err)
	}
	w.Client = second
}

// TestOlderConnectionReplacesNone: of a connection whose greeting ends after that of a
// newer one, it is the older that ends.
func TestOlderConnectionReplacesNone(t *testing.T) {
	w := newWorld(t)
	late := &lateProof{}
	older, err := guest.Dial(w.ctx, func(context.Context) (net.Conn, error) {
		conn, err := net.Dial("tcp", w.addr)
		late.Conn = conn
		return late, err
	}, testSecret)
	if err != nil {
		t.Fatal(err)
	}
	newer := w.dial()
	w.over(w.Client)
	if _, err := late.Conn.Write(late.proof); err != nil {
		t.Fatal(err)
	}
	w.over(older)
	if _, err := newer.Ping(w.ctx); err != nil {
		t.Error(err)
	}
	w.Client = newer
}

// lateProof is a connection that keeps back the last part of the greeting.
type lateProof struct {
	net.Conn
	writes int
	proof  []byte
}

func (c *lateProof) Write(p []byte) (int, error) {
	if c.writes++; c.writes == 1 {
		return c.Conn.Write(p)
	}
	c.proof = append(c.proof, p...)
	return len(p), nil
}

// over waits until a connection has ended.
func (w *world) over(c *guest.Client) {
	w.t.Helper()
	select {
	case <-c.Done():
	case <-w.ctx.Done():
		w.t.Fatal("the connection goes on")
	}
}

func BenchmarkExecTrue(b *testing.B) {
	w := newWorld(b)
	i := 0
	for b.Loop() {
		i++
		id := fmt.Sprint("b", i)
		w.start(guest.StartRequest{ID: id, Command: []string{"true"}})
		w.end(id)
	}
}
