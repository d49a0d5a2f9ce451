package relay

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"pgregory.net/rapid"
)

// A stream of events ends as if it were over, and only when the sandbox has gone. Any
// other answer breaks off.
func TestAnswersThatAMoveEnds(t *testing.T) {
	g := newRig(t, Config{})
	for kind, clean := range map[string]bool{"text/event-stream; charset=utf-8": true, "text/plain": false} {
		both(t, func(t *testing.T, h2 bool) {
			from, to := g.agent(), g.agent()
			sb := g.served(from, to, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", kind)
				_, _ = io.WriteString(w, "data: 1\n\n")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			})
			req, _ := http.NewRequestWithContext(t.Context(), "GET", g.url(sb, "/"), nil)
			resp, err := g.client(h2).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			g.move(sb, from, to)
			if body, err := io.ReadAll(resp.Body); string(body) != "data: 1\n\n" || (err == nil) != clean {
				t.Errorf("%s: %q, %v", kind, body, err)
			}
		})
	}
}

func TestWebSocketsInAMove(t *testing.T) {
	g := newRig(t, Config{})
	from, to := g.agent(), g.agent()
	sb := g.served(from, to, echoSocket)
	c, _, err := g.websocket(sb, "/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.CloseNow() }()
	echo := func(c *websocket.Conn, what string) {
		t.Helper()
		if err := c.Write(t.Context(), websocket.MessageText, []byte(what)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(t.Context()); string(got) != what || err != nil {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	echo(c, "hello")
	sb = g.known(g.migrate(sb, "test", to))
	echo(c, strings.Repeat("it stays open until the sandbox has gone", 10_000)[:30_000])
	from.shutDoor(sb.GetId())
	var wg sync.WaitGroup
	moving := sb
	wg.Go(func() { // a new one waits
		c, _, err := g.websocket(moving, "/")
		if err != nil {
			t.Errorf("a new WebSocket: %v", err)
			return
		}
		defer func() { _ = c.CloseNow() }()
		echo(c, "new")
	})
	g.heldAre(1)
	g.arrive(g.depart(sb), to)
	if _, _, err := c.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusServiceRestart {
		t.Errorf("%v, want the close code 1012", err)
	}
	wg.Wait()
}

// Raw connections end after the last byte that was received; a client that goes on
// sending sees no reset.
func TestRawTCPInAMove(t *testing.T) {
	g := newRig(t, Config{})
	from, to := g.agent(), g.agent()
	sb := g.tcpApp(from, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "old")
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
	})
	to.listen(sb.GetId(), 5432, localServer(t, hello))
	c := g.dialRaw(sb)
	in := bufio.NewReader(c)
	if b, err := in.Peek(3); string(b) != "old" || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	sb = g.known(g.migrate(sb, "test", to))
	_, _ = io.WriteString(c, "still read")
	from.shutDoor(sb.GetId())
	next := g.dialRaw(sb)
	_, _ = io.WriteString(next, "GET / HTTP/1.0\r\n\r\n")
	g.heldAre(1)
	g.arrive(g.depart(sb), to)
	if b, err := io.ReadAll(in); string(b) != "old" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	for range 100 {
		if _, err := c.Write(make([]byte, 32<<10)); err != nil {
			t.Fatalf("after the end: %v", err)
		}
	}
	if b, err := io.ReadAll(next); !strings.HasSuffix(string(b), "hello") || err != nil {
		t.Errorf("the one that waited: %q, %v", b, err)
	}
}

// However a WebSocket's bytes are cut, the relay knows when a frame is whole.
func TestFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []byte
		ends := []int{0}
		for range rapid.IntRange(1, 5).Draw(t, "frames") {
			n := rapid.SampledFrom([]int{0, 1, 125, 126, 127, 65535, 65536}).Draw(t, "length")
			masked := rapid.Bool().Draw(t, "masked")
			var mask byte
			if masked {
				mask = 0x80
			}
			all = append(all, 0x82)
			switch {
			case n < 126:
				all = append(all, mask|byte(n))
			case n < 1<<16:
				all = append(all, mask|126, byte(n>>8), byte(n))
			default:
				all = append(all, mask|127, 0, 0, 0, 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
			}
			if masked {
				n += 4
			}
			all = append(all, make([]byte, n)...)
			ends = append(ends, len(all))
		}
		var f frames
		for at := 0; ; {
			if whole := slices.Contains(ends, at); f.between() != whole {
				t.Fatalf("after %d bytes: %t, want %t", at, f.between(), whole)
			}
			if at == len(all) {
				return
			}
			n := rapid.IntRange(1, len(all)-at).Draw(t, "cut")
			f.pass(all[at : at+n])
			at += n
		}
	})
}

// The close frame goes between two frames of the app, and only if it has not sent its
// own.
func TestServiceRestartBetweenFrames(t *testing.T) {
	for name, row := range map[string]struct {
		sent string
		want string
	}{
		"nothing yet":   {"", string(serviceRestart)},
		"a whole frame": {"\x81\x02hi", "\x81\x02hi" + string(serviceRestart)},
		"half a frame":  {"\x81\x05hi", "\x81\x05hi"},
		"half a head":   {"\x81", "\x81"},
		"its goodbye":   {"\x88\x02\x03\xe8", "\x88\x02\x03\xe8"},
	} {
		r := &socketReader{in: io.MultiReader(strings.NewReader(row.sent), endless{errParted})}
		if got, err := io.ReadAll(r); string(got) != row.want || !errors.Is(err, errParted) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

type endless struct{ err error }

func (e endless) Read([]byte) (int, error) { return 0, e.err }
