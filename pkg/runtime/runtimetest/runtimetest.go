// Package runtimetest says what every runtime.Runtime must do, as tests.
package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
)

// EchoPort is where the sandboxes of Harness.Spec listen. A client's first line is
// "echo"; what follows comes back until the client's half close, then the
// connection ends.
const EchoPort = 8000

// Harness is an implementation under test.
type Harness struct {
	// Open returns a Runtime on a machine of the test's own. A second call, after
	// the first Runtime was closed, is the restarted agent on the same machine.
	Open func(t *testing.T) runtime.Runtime
	// Spec describes a sandbox that echoes.
	Spec func(t *testing.T, id string) runtime.Spec
}

// Run runs all tests. open makes a Harness with a fresh machine.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for name, test := range map[string]func(*testing.T, Harness){
		"Life": life, "Exists": exists, "HalfClose": halfClose, "Adopt": adopt,
		"ConcurrentLives": concurrentLives, "ConcurrentDestroy": concurrentDestroy, "CancelledCreate": cancelledCreate, "Closed": closed,
		"Pauses": pauses, "Restores": restores, "FailedRestores": failedRestores, "AdoptPaused": adoptPaused,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func create(t *testing.T, h Harness, rt runtime.Runtime, id string) runtime.Sandbox {
	t.Helper()
	sb, err := rt.Create(t.Context(), h.Spec(t, id))
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func destroy(t *testing.T, sb runtime.Sandbox) {
	t.Helper()
	if err := sb.Destroy(context.Background()); err != nil {
		t.Errorf("destroy: %v", err)
	}
}

// dial waits until the inside listens.
func dial(t *testing.T, sb runtime.Sandbox) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		c, err := sb.Dial(ctx, EchoPort)
		if err == nil {
			return c
		}
		if !errors.Is(err, runtime.ErrRefused) {
			t.Fatal(err)
		}
	}
}

// echo sends text, half closes and expects it back.
func echo(t *testing.T, sb runtime.Sandbox, text string) {
	t.Helper()
	c := dial(t, sb)
	defer c.Close()
	if _, err := fmt.Fprintf(c, "echo\n%s", text); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != text {
		t.Errorf("echo of %q: %q, %v", text, got, err)
	}
}

// clean fails if the runtime finds something that belongs to no sandbox.
func clean(t *testing.T, rt runtime.Runtime) {
	t.Helper()
	if removed, err := rt.Sweep(context.Background()); err != nil || len(removed) > 0 {
		t.Errorf("sweep found %v, %v", removed, err)
	}
}

func life(t *testing.T, h Harness) {
	rt := h.Open(t)
	sb := create(t, h, rt, "sb-life")
	if sb.ID() != "sb-life" || rt.Name() == "" || rt.Version() == "" {
		t.Errorf("id %q, runtime %q %q", sb.ID(), rt.Name(), rt.Version())
	}
	echo(t, sb, "hello")
	if _, err := sb.Dial(t.Context(), 1); !errors.Is(err, runtime.ErrRefused) {
		t.Errorf("dial a closed port: %v", err)
	}
	if st, err := sb.Stats(t.Context()); err != nil || st.MemoryBytes <= 0 || st.OOMKills != 0 {
		t.Errorf("stats %+v, %v", st, err)
	}
	select {
	case <-sb.Done():
		t.Fatalf("ended by itself: %+v", sb.Exit())
	default:
	}
	open := dial(t, sb)
	defer open.Close()
	if _, err := fmt.Fprintln(open, "echo"); err != nil {
		t.Error(err)
	}
	destroy(t, sb)
	<-sb.Done()
	if e := sb.Exit(); e.OOM || e.Err != nil {
		t.Errorf("exit after destroy: %+v", e)
	}
	if _, err := io.ReadAll(open); err != nil && !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, net.ErrClosed) {
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			t.Errorf("connection outlived the sandbox: %v", err)
		}
	}
	destroy(t, sb)
	if _, err := sb.Dial(t.Context(), EchoPort); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("dial after destroy: %v", err)
	}
	if _, err := sb.Stats(t.Context()); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("stats after destroy: %v", err)
	}
	clean(t, rt)
}

func exists(t *testing.T, h Harness) {
	rt := h.Open(t)
	sb := create(t, h, rt, "sb-twice")
	if _, err := rt.Create(t.Context(), h.Spec(t, "sb-twice")); !errors.Is(err, runtime.ErrExists) {
		t.Errorf("second create: %v", err)
	}
	echo(t, sb, "the first one is unharmed")
	destroy(t, sb)
	again := create(t, h, rt, "sb-twice")
	// A late destroy of the first is not one of the second.
	destroy(t, sb)
	echo(t, again, "so is the second")
	destroy(t, again)
	clean(t, rt)
}

func halfClose(t *testing.T, h Harness) {
	rt := h.Open(t)
	sb := create(t, h, rt, "sb-half")
	defer destroy(t, sb)
	c := dial(t, sb)
	defer c.Close()
	go func() {
		fmt.Fprintln(c, "echo")
		b := make([]byte, 1<<16)
		for range 64 {
			if _, err := c.Write(b); err != nil {
				t.Errorf("write: %v", err)
			}
		}
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Errorf("half close: %v", err)
		}
	}()
	if n, err := io.Copy(io.Discard, c); n != 64<<16 || err != nil {
		t.Errorf("%d bytes came back, %v", n, err)
	}
}

func adopt(t *testing.T, h Harness) {
	rt := h.Open(t)
	create(t, h, rt, "sb-kept")
	create(t, h, rt, "sb-also")
	if err := rt.Close(); err != nil {
		t.Fatal(err)
	}
	rt = h.Open(t)
	alive, err := rt.Adopt(t.Context())
	if err != nil || len(alive) != 2 {
		t.Fatalf("adopted %v, %v", alive, err)
	}
	for _, sb := range alive {
		echo(t, sb, "still here")
		if _, err := rt.Create(t.Context(), h.Spec(t, sb.ID())); !errors.Is(err, runtime.ErrExists) {
			t.Errorf("create over an adopted one: %v", err)
		}
	}
	clean(t, rt)
	destroy(t, alive[0])
	<-alive[0].Done()
	if err := rt.Close(); err != nil {
		t.Fatal(err)
	}
	// Without Adopt, what is there belongs to nothing.
	rt = h.Open(t)
	if removed, err := rt.Sweep(t.Context()); err != nil || len(removed) == 0 {
		t.Errorf("swept %v, %v", removed, err)
	}
	clean(t, rt)
}

func concurrentLives(t *testing.T, h Harness) {
	rt := h.Open(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			sb, err := rt.Create(t.Context(), h.Spec(t, fmt.Sprintf("sb-many-%d", i)))
			if err != nil {
				t.Error(err)
				return
			}
			echo(t, sb, sb.ID())
			destroy(t, sb)
		})
	}
	wg.Wait()
	clean(t, rt)
}

func concurrentDestroy(t *testing.T, h Harness) {
	rt := h.Open(t)
	sb := create(t, h, rt, "sb-end")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			destroy(t, sb)
			// Whoever returns, returns when nothing is left.
			clean(t, rt)
		})
	}
	wg.Wait()
}

func cancelledCreate(t *testing.T, h Harness) {
	rt := h.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := rt.Create(ctx, h.Spec(t, "sb-never")); !errors.Is(err, context.Canceled) {
		t.Errorf("create: %v", err)
	}
	clean(t, rt)
	destroy(t, create(t, h, rt, "sb-never"))
}

func closed(t *testing.T, h Harness) {
	rt := h.Open(t)
	for range 2 {
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := rt.Create(t.Context(), h.Spec(t, "sb-late")); err == nil {
		t.Error("a closed runtime creates")
	}
	if _, err := rt.Adopt(t.Context()); err == nil {
		t.Error("a closed runtime adopts")
	}
}
