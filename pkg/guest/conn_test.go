package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"pgregory.net/rapid"
)

var secret = []byte("test secret")

// link returns a client of a server on the other end of a pipe.
func link(t testing.TB, serve func(net.Conn) error) *Client {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = serve(theirs)
		_ = theirs.Close()
	}()
	c, err := Dial(t.Context(), func(context.Context) (net.Conn, error) { return ours, nil }, secret)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		<-done
	})
	return c
}

func TestHandshakeRefusals(t *testing.T) {
	dial := func(serve func(net.Conn)) error {
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer theirs.Close()
			serve(theirs)
		}()
		_, err := Dial(t.Context(), func(context.Context) (net.Conn, error) { return ours, nil }, secret)
		<-done
		return err
	}
	var hello [36]byte
	for name, serve := range map[string]func(net.Conn){
		"another secret": func(c net.Conn) { _ = greetClient(c, []byte("other")) },
		"an echo": func(c net.Conn) {
			_, _ = io.ReadFull(c, hello[:])
			_, _ = c.Write(append(hello[:], make([]byte, sha256.Size)...))
		},
		"another version": func(c net.Conn) {
			_, _ = io.ReadFull(c, hello[:])
			hello[3]++
			_, _ = c.Write(append(hello[:], make([]byte, sha256.Size)...))
		},
	} {
		if err := dial(serve); !errors.Is(err, ErrHandshake) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := dial(func(net.Conn) {}); err == nil {
		t.Error("closed at once: no error")
	}
	// A client that does not know the secret gets no further either.
	ours, theirs := net.Pipe()
	go func() { _ = greetGuest(ours, []byte("other")); _ = ours.Close() }()
	if err := Serve(theirs, secret, nil, func(*Call) { t.Error("served") }); err == nil {
		t.Error("a wrong client was let in")
	}
}

// TestHandshakeIsNotReflected: a guest that has only the client's words can't
// use them as its own proof.
func TestHandshakeIsNotReflected(t *testing.T) {
	a, err := newHello()
	if err != nil {
		t.Fatal(err)
	}
	b, err := newHello()
	if err != nil {
		t.Fatal(err)
	}
	if a == b || bytes.Equal(proof(secret, "guest", &a, &b), proof(secret, "client", &a, &b)) ||
		bytes.Equal(proof(secret, "guest", &a, &b), proof(secret, "guest", &b, &a)) {
		t.Error("proofs are not bound to role and nonces")
	}
}

func TestSilentGuestTimesOut(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Dial(ctx, func(context.Context) (net.Conn, error) { return ours, nil }, secret)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// hostile serves a connection whose guest does what raw says on each stream.
func hostile(raw func(*yamux.Stream)) func(net.Conn) error {
	return func(conn net.Conn) error {
		if err := greetClient(conn, secret); err != nil {
			return err
		}
		s, err := yamux.Server(conn, muxConfig())
		if err != nil {
			return err
		}
		defer s.Close()
		for {
			stream, err := s.AcceptStream()
			if err != nil {
				return err
			}
			go func() {
				_, _, _ = readFrame(stream, nil)
				raw(stream)
				_ = stream.Close()
			}()
		}
	}
}

func TestHostileGuest(t *testing.T) {
	item := newEncoder(kindItem)
	(&Exec{ID: "x", Command: []string{string(make([]byte, 100_000))}}).encode(item)
	for name, raw := range map[string]func(*yamux.Stream){
		"nothing":        func(*yamux.Stream) {},
		"length":         func(s *yamux.Stream) { _, _ = s.Write([]byte{2, 255, 255, 255, 255}) },
		"unknown kind":   func(s *yamux.Stream) { _, _ = s.Write([]byte{99, 0, 0, 0, 0}) },
		"half a frame":   func(s *yamux.Stream) { _, _ = s.Write([]byte{2, 0, 0, 0, 9, 1}) },
		"bad error":      func(s *yamux.Stream) { _, _ = s.Write([]byte{3, 0, 0, 0, 1, 200}) },
		"wrong kind":     func(s *yamux.Stream) { _, _ = s.Write([]byte{4, 0, 0, 0, 1, 1}) },
		"malformed exec": func(s *yamux.Stream) { _, _ = s.Write([]byte{2, 0, 0, 0, 1, 200}) },
		"endless list": func(s *yamux.Stream) {
			for {
				if _, err := s.Write(item.frame()); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := link(t, hostile(raw))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			// The end of a list carries nothing that could be malformed.
			if _, err := c.ListExecs(ctx); !errors.Is(err, ErrBroken) && name != "malformed exec" {
				t.Errorf("list: %v", err)
			}
			if name == "endless list" {
				return
			}
			if _, err := c.Wait(ctx, "x", 0); !errors.Is(err, ErrBroken) {
				t.Errorf("wait: %v", err)
			}
			if _, err := c.ReadFile(ctx, "/x", 0, 0); !errors.Is(err, ErrBroken) {
				t.Errorf("read: %v", err)
			}
			if _, err := c.WriteFile(ctx, "/x", 0, false, endless{}); !errors.Is(err, ErrBroken) {
				t.Errorf("write: %v", err)
			}
			if err := c.Events(ctx, func(Event) error { return nil }); !errors.Is(err, ErrBroken) {
				t.Errorf("events: %v", err)
			}
		})
	}
}

// TestListCostsWhatItHolds: a list of empty items is cut off by what it takes in
// memory, long before its bytes on the wire reach the limit.
func TestListCostsWhatItHolds(t *testing.T) {
	var sent atomic.Int64
	item := newEncoder(kindItem).frame()
	many := bytes.Repeat(item, 1000)
	c := link(t, hostile(func(s *yamux.Stream) {
		for {
			if _, err := s.Write(many); err != nil {
				return
			}
			sent.Add(1000)
		}
	}))
	if _, err := c.ListExecs(t.Context()); !errors.Is(err, ErrBroken) {
		t.Errorf("list: %v", err)
	}
	// What the windows of the connection hold comes on top.
	if most := int64(MaxList/execCost + 1<<20/len(item)); sent.Load() > most {
		t.Errorf("%d items were taken, want at most %d", sent.Load(), most)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestGuestThatNeverAnswers(t *testing.T) {
	c := link(t, hostile(func(s *yamux.Stream) { _, _ = io.Copy(io.Discard, s) }))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if _, err := c.WriteFile(ctx, "/x", 0, false, endless{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestGuestMayNotOpenOrPing(t *testing.T) {
	for name, do := range map[string]func(*yamux.Session){
		"open": func(s *yamux.Session) { _, _ = s.OpenStream() },
		"ping": func(s *yamux.Session) { _, _ = s.Ping() },
	} {
		t.Run(name, func(t *testing.T) {
			c := link(t, func(conn net.Conn) error {
				if err := greetClient(conn, secret); err != nil {
					return err
				}
				s, err := yamux.Server(conn, muxConfig())
				if err != nil {
					return err
				}
				defer s.Close()
				do(s)
				<-s.CloseChan()
				return nil
			})
			<-c.Done()
		})
	}
}

// TestGuardKeepsCount: however the bytes are cut, the guard finds the headers.
func TestGuardKeepsCount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in []byte
		for range rapid.IntRange(0, 8).Draw(t, "frames") {
			body := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "body")
			in = append(in, 0, muxData, 0, 2, 0, 0, 0, 1, 0, 0, 0, byte(len(body)))
			in = append(in, body...)
			in = append(in, 0, 1, 0, 2, 0, 0, 0, 1, 255, 255, 255, 255)
		}
		bad := rapid.Bool().Draw(t, "bad")
		if bad {
			in = append(in, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0)
		}
		var g guard
		var err error
		for len(in) > 0 && err == nil {
			n := rapid.IntRange(1, len(in)).Draw(t, "cut")
			err = g.inspect(in[:n])
			in = in[n:]
		}
		if (err != nil) != bad {
			t.Fatalf("bad %v: %v", bad, err)
		}
	})
}

// FuzzGuest: a guest may send anything after the handshake; the client's calls
// end and nothing panics.
func FuzzGuest(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 5, 2, 0, 0, 0, 0})
	f.Add([]byte{0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		c := link(t, func(conn net.Conn) error {
			if err := greetClient(conn, secret); err != nil {
				return err
			}
			// A pipe has no buffer: somebody has to read.
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			_, err := conn.Write(p)
			return err
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _ = c.ListExecs(ctx)
		_, _ = c.Ping(ctx)
	})
}

// FuzzServer: a request may be anything; the server answers or ends the stream.
func FuzzServer(f *testing.F) {
	for op := OpPing; op <= OpWatch; op++ {
		f.Add([]byte{byte(op), 4, 'm', 'a', 'i', 'n', 1, 1, 'x'})
	}
	s := NewSimServer(secret)
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > MaxFrame {
			return
		}
		c := link(t, s.Serve)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		e := newEncoder(kindRequest)
		e.b = append(e.b, p...)
		k, err := c.open(ctx, 0, e)
		if err != nil {
			t.Fatal(err)
		}
		for {
			if kd, _, err := k.recv(); err != nil || kd == kindOK {
				break
			}
		}
		k.close()
		if _, err := c.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
