package transfer

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
)

// throttled is a link of so many bytes per second.
type throttled struct {
	net.Conn
	rate float64
}

func (c throttled) Write(b []byte) (int, error) {
	<-time.After(time.Duration(float64(len(b)) / c.rate * float64(time.Second)))
	return c.Conn.Write(b)
}

// Over a slow link, what can be compressed is, and what can't goes as it is. Time is
// that of the test's own clock, in which nothing else takes any.
func TestSlowLink(t *testing.T) {
	const size, rate = 24 << 20, 20 << 20
	for name, c := range map[string]struct {
		text             float64
		fastest, slowest time.Duration
		plain            bool
	}{
		"text":  {1, 0, 800 * time.Millisecond, false},
		"noise": {0, 1190 * time.Millisecond, 1250 * time.Millisecond, false},
		// Who says so compresses nothing.
		"text, plain": {1, 1190 * time.Millisecond, 1250 * time.Millisecond, true},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string][]byte{"pages.img": content(1, size, 0, c.text)}
			from, dir := folder(t, files), t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				sc, tc := pipe(t)
				begin := time.Now()
				var sent Sent
				serr, terr := both(t, func() (err error) {
					sent, err = NewSource(throttled{sc, rate}, Options{Plain: c.plain}).Files(t.Context(), from)
					return err
				}, func() error { _, err := NewTarget(tc, Options{}).Files(t.Context(), dir); return err })
				if serr != nil || terr != nil {
					t.Fatalf("source: %v; target: %v", serr, terr)
				}
				if took := time.Since(begin); took < c.fastest || took > c.slowest {
					t.Errorf("it took %v, want %v to %v; %+v", took, c.fastest, c.slowest, sent)
				}
				if (c.text == 0 || c.plain) && sent.Compressed > 0 {
					t.Errorf("it was compressed: %+v", sent)
				}
			})
			wantFiles(t, dir, files)
		})
	}
}

// A link that brings only a few bytes a second is slow, and not one that stalls.
func TestVerySlowLink(t *testing.T) {
	files := map[string][]byte{"pages.img": content(1, 1<<20, 0, 0)}
	from, dir := folder(t, files), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		sc, tc := pipe(t)
		serr, terr := both(t, func() error {
			_, err := NewSource(throttled{sc, 10 << 10}, Options{}).Files(t.Context(), from)
			return err
		}, func() error { _, err := NewTarget(tc, Options{}).Files(t.Context(), dir); return err })
		if serr != nil || terr != nil {
			t.Fatalf("source: %v; target: %v", serr, terr)
		}
	})
	wantFiles(t, dir, files)
}

// buffered is a throttled link that takes everything at once.
type buffered struct {
	net.Conn
	queue chan []byte
}

func newBuffered(c net.Conn, rate float64) *buffered {
	b := &buffered{c, make(chan []byte, 1000)}
	go func() {
		for piece := range b.queue {
			if _, err := (throttled{c, rate}).Write(piece); err != nil {
				return
			}
		}
	}()
	return b
}

func (b *buffered) Write(p []byte) (int, error) {
	b.queue <- bytes.Clone(p)
	return len(p), nil
}

// SetWriteDeadline does nothing: what was taken is delivered.
func (b *buffered) SetWriteDeadline(time.Time) error { return nil }

// What the source has written may be on its way for longer than a stall: the target says
// that it gets on.
func TestDeepBuffer(t *testing.T) {
	files := map[string][]byte{"pages.img": content(1, 1<<20, 0, 0)}
	from, dir := folder(t, files), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		sc, tc := pipe(t)
		b := newBuffered(sc, 20<<10)
		serr, terr := both(t, func() error { _, err := NewSource(b, Options{}).Files(t.Context(), from); return err },
			func() error { _, err := NewTarget(tc, Options{}).Files(t.Context(), dir); return err })
		if serr != nil || terr != nil {
			t.Errorf("source: %v; target: %v", serr, terr)
		}
		close(b.queue)
	})
	wantFiles(t, dir, files)
}

// moving are all that wait for the other side while bytes should move.
var moving = map[string]func(ctx context.Context, t *testing.T, from, dir string, sc, tc net.Conn) error{
	"source writes": func(ctx context.Context, _ *testing.T, from, _ string, sc, _ net.Conn) error {
		_, err := NewSource(sc, Options{}).Files(ctx, from)
		return err
	},
	"source waits for the end": func(ctx context.Context, _ *testing.T, from, _ string, sc, tc net.Conn) error {
		go drain(tc)
		_, err := NewSource(sc, Options{}).Files(ctx, from)
		return err
	},
	"target in a file": func(ctx context.Context, _ *testing.T, _, dir string, sc, tc net.Conn) error {
		go func() { _, _ = sc.Write(append(file("a"), first...)) }()
		_, err := NewTarget(tc, Options{}).Files(ctx, dir)
		return err
	},
	"target in a frame": func(ctx context.Context, _ *testing.T, _, dir string, sc, tc net.Conn) error {
		go func() { _, _ = sc.Write(append(file("a"), first[:1000]...)) }()
		_, err := NewTarget(tc, Options{}).Files(ctx, dir)
		return err
	},
	"target in a message": func(ctx context.Context, _ *testing.T, _, _ string, sc, tc net.Conn) error {
		go func() { _, _ = sc.Write([]byte{frameMessage, 0}) }()
		_, err := NewTarget(tc, Options{}).AwaitParcel(ctx)
		return err
	},
}

func drain(c net.Conn) {
	b := make([]byte, 1<<20)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

// waiting are all that wait for the other node's work: as long as ctx goes.
var waiting = map[string]func(ctx context.Context, sc, tc net.Conn) error{
	"parcel": func(ctx context.Context, _, tc net.Conn) error {
		_, err := NewTarget(tc, Options{}).AwaitParcel(ctx)
		return err
	},
	"proceed": func(ctx context.Context, _, tc net.Conn) error {
		_, err := NewTarget(tc, Options{}).AwaitProceed(ctx)
		return err
	},
	"offer": func(ctx context.Context, sc, tc net.Conn) error {
		go drain(tc)
		return NewSource(sc, Options{}).Offer(ctx, &nodev1.Parcel{})
	},
	"restored": func(ctx context.Context, sc, _ net.Conn) error { return NewSource(sc, Options{}).AwaitRestored(ctx) },
	"arrived": func(ctx context.Context, sc, _ net.Conn) error {
		_, err := NewSource(sc, Options{}).AwaitArrived(ctx)
		return err
	},
}

func TestStalls(t *testing.T) {
	from := folder(t, map[string][]byte{"a": content(1, 3<<20, 0, 0)})
	for name, do := range moving {
		dir := t.TempDir()
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc, tc := pipe(t)
				begin := time.Now()
				err := do(t.Context(), t, from, dir, sc, tc)
				if !errors.Is(err, ErrStalled) || fault.CodeOf(err) != fault.Unavailable {
					t.Errorf("got %v", err)
				}
				if took := time.Since(begin); took < DefaultStall || took > DefaultStall+2*farewell {
					t.Errorf("given up after %v", took)
				}
				_, _ = sc.Close(), tc.Close()
			})
			wantFiles(t, dir, nil)
		})
	}
}

// The end of ctx ends every step at once, with its cause.
func TestContextEnds(t *testing.T) {
	from := folder(t, map[string][]byte{"a": content(1, 3<<20, 0, 0)})
	check := func(t *testing.T, do func(context.Context, net.Conn, net.Conn) error) {
		synctest.Test(t, func(t *testing.T) {
			sc, tc := pipe(t)
			why := errors.New("the node stops")
			ctx, cancel := context.WithCancelCause(t.Context())
			begin := time.Now()
			time.AfterFunc(3*time.Second, func() { cancel(why) })
			if err := do(ctx, sc, tc); !errors.Is(err, why) {
				t.Errorf("got %v, want %v", err, why)
			}
			if took := time.Since(begin); took > 3*time.Second+2*farewell {
				t.Errorf("it went on for %v", took)
			}
			_, _ = sc.Close(), tc.Close()
		})
	}
	for name, do := range moving {
		dir := t.TempDir()
		t.Run(name, func(t *testing.T) {
			check(t, func(ctx context.Context, sc, tc net.Conn) error { return do(ctx, t, from, dir, sc, tc) })
			wantFiles(t, dir, nil)
		})
	}
	for name, do := range waiting {
		t.Run(name, func(t *testing.T) { check(t, do) })
	}
}

// Whoever waited too long can still say so, and the other side hears it.
func TestStopAfterDeadline(t *testing.T) {
	sc, tc := streams(t, true)
	s, g := NewSource(sc, Options{}), NewTarget(tc, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.AwaitRestored(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if err := s.Stop(fault.New(fault.Deadline, "too late")); err != nil {
		t.Fatal(err)
	}
	if _, err := g.AwaitProceed(t.Context()); !isGaveUp(err) || fault.CodeOf(err) != fault.Deadline {
		t.Errorf("heard %v", err)
	}
}

// The other side is gone in the middle: told at once, by the stream's end.
func TestPeerVanishes(t *testing.T) {
	for name, local := range map[string]bool{"tls": false, "local": true} {
		t.Run(name, func(t *testing.T) {
			from, dir := folder(t, map[string][]byte{"a": content(1, 24<<20, 0, 0)}), t.TempDir()
			sc, tc := streams(t, local)
			half := &stopper{Conn: sc, after: 8 << 20}
			serr, terr := both(t, func() error { _, err := NewSource(half, Options{}).Files(t.Context(), from); return err },
				func() error { _, err := NewTarget(tc, Options{}).Files(t.Context(), dir); return err })
			if !errors.Is(serr, ErrGone) || !errors.Is(terr, ErrGone) {
				t.Errorf("source %v, target %v", serr, terr)
			}
			wantFiles(t, dir, nil)
		})
	}
}

// stopper closes the stream after some bytes.
type stopper struct {
	net.Conn
	after int
}

func (c *stopper) Write(b []byte) (int, error) {
	if c.after -= len(b); c.after < 0 {
		_ = c.Conn.Close()
	}
	return c.Conn.Write(b)
}
