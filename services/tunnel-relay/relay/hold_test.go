package relay

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

func localServer(t testing.TB, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func (g *rig) heldAre(n int64) {
	g.t.Helper()
	eventually(g.t, "the requests are held", func() bool { return g.relay.router.held.Load() == n })
}

// Requests of every kind that come while a sandbox starts are served once it
// runs, even when its port is opened a little later still.
func TestHeldWhileStarting(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	sb := g.accept(&siroccov1.Port{Port: 8000}, &siroccov1.Port{Port: 5432, Protocol: rawTCP})
	sb.Tunnels[0], sb.Tunnels[1] = sb.GetTunnels()[1], sb.GetTunnels()[0] // rawPort takes the first
	echoes := localServer(t, echoSocket)
	a.listen(sb.GetId(), 5432, localServer(t, hello))
	var wg sync.WaitGroup
	for _, h2 := range []bool{false, true} {
		c := g.client(h2)
		wg.Go(func() {
			if resp, body := get(t, c, g.url(sb, "/no")); resp.StatusCode != 403 {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
		})
	}
	wg.Go(func() {
		c, _, err := g.websocket(sb, "/")
		if err != nil {
			t.Errorf("WebSocket: %v", err)
			return
		}
		_ = c.CloseNow()
	})
	wg.Go(func() {
		c := g.dialRaw(sb)
		_, _ = io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
		if b, err := io.ReadAll(c); !strings.HasSuffix(string(b), "hello") || err != nil {
			t.Errorf("raw: %q, %v", b, err)
		}
	})
	g.heldAre(4)
	g.place(sb, a) // nothing listens on port 8000 yet
	g.heldAre(0)
	eventually(t, "the port was tried in vain", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.headers) > 8
	})
	a.listen(sb.GetId(), 8000, echoes)
	wg.Wait()
}

func TestHeldUntilTheEnd(t *testing.T) {
	g := newRig(t, Config{MaxHeld: 2})
	sb := g.accept(&siroccov1.Port{Port: 8000})
	c := g.client(true)
	var wg sync.WaitGroup
	wg.Go(func() {
		resp, body := get(t, c, g.url(sb, "/"))
		if wantReason(t, resp, 410, ReasonEnded); !strings.Contains(body, "no_capacity") {
			t.Errorf("%q", body)
		}
	})
	g.heldAre(1)
	// One who leaves is forgotten.
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		req, _ := http.NewRequestWithContext(ctx, "GET", g.url(sb, "/"), nil)
		if resp, err := g.client(false).Do(req); err == nil {
			_ = resp.Body.Close()
			t.Error("answered though cancelled")
		}
	})
	g.heldAre(2)
	resp, _ := get(t, c, g.url(sb, "/"))
	wantReason(t, resp, 503, ReasonOverloaded)
	cancel()
	g.heldAre(1)
	g.step(sb, lifecycle.Finish{End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_NO_CAPACITY}})
	wg.Wait()
}

// A move: new requests wait from the moment it begins, streams to the old
// epoch are cut when the new one is known, and the old node serves no more.
func TestMove(t *testing.T) {
	g := newRig(t, Config{})
	from, to := g.agent(), g.agent()
	say := func(what string) string {
		return localServer(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, what)
			if r.URL.Path == "/stay" {
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}
		})
	}
	sb := g.accept(&siroccov1.Port{Port: 8000})
	from.listen(sb.GetId(), 8000, say("old"))
	to.listen(sb.GetId(), 8000, say("new"))
	sb = g.placed(sb, from)
	c := g.client(true)
	if _, body := get(t, c, g.url(sb, "/")); body != "old" {
		t.Fatalf("%q", body)
	}
	req, _ := http.NewRequestWithContext(t.Context(), "GET", g.url(sb, "/stay"), nil)
	stay, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stay.Body.Close() }()
	sb = g.known(g.swap(sb, func(sb *siroccov1.Sandbox) { sb.State = siroccov1.State_STATE_MIGRATING }))
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if resp, body := get(t, c, g.url(sb, "/")); body != "new" {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
		})
	}
	g.heldAre(5)
	to.run(sb.GetId(), 2)
	g.swap(sb, func(sb *siroccov1.Sandbox) {
		sb.State = siroccov1.State_STATE_RUNNING
		sb.Placement.Epoch, sb.Placement.NodeAddress = 2, to.address
	})
	wg.Wait()
	if _, err := io.ReadAll(stay.Body); err == nil {
		t.Error("a stream to the old epoch was not cut")
	}
	for h := range to.epochs() {
		if h != 2 {
			t.Errorf("the new node was asked for epoch %d", h)
		}
	}
}

func (a *agent) epochs() map[uint64]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := map[uint64]int{}
	for _, h := range a.headers {
		m[h.Epoch]++
	}
	return m
}

// A node that says "not here" is ahead of the relay's view: the request waits
// for the news. If none comes, it is refused.
func TestNodeIsAheadOfTheView(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	sb := g.accept(&siroccov1.Port{Port: 8000})
	a.listen(sb.GetId(), 8000, localServer(t, hello))
	sb = g.placed(sb, a)
	a.run(sb.GetId(), 2) // the record still says 1
	c := g.client(true)
	for name, ask := range map[string]func() (*http.Response, string){
		"http": func() (*http.Response, string) { return get(t, c, g.url(sb, "/")) },
	} {
		var wg sync.WaitGroup
		wg.Go(func() {
			if resp, body := ask(); body != "hello" {
				t.Errorf("%s: %d %q", name, resp.StatusCode, body)
			}
		})
		g.heldAre(1)
		sb = g.swap(sb, func(sb *siroccov1.Sandbox) { sb.Placement.Epoch = 2 })
		wg.Wait()
	}
	a.run(sb.GetId(), 0)
	resp, _ := get(t, g.client(false), g.url(sb, "/"), "Connection", "Upgrade", "Upgrade", "websocket")
	wantReason(t, resp, 503, ReasonNodeUnreachable)
}

func TestAgentRestart(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	sb := g.app(a, http.HandlerFunc(hello))
	c := g.client(true)
	if _, body := get(t, c, g.url(sb, "/")); body != "hello" {
		t.Fatalf("%q", body)
	}
	a.stop()
	resp, _ := get(t, c, g.url(sb, "/"))
	if resp.StatusCode != 503 && resp.StatusCode != 502 {
		t.Errorf("with the agent away: %d", resp.StatusCode)
	}
	again := g.agentAt(a.address)
	again.runs, again.ports = a.runs, a.ports
	if resp, body := get(t, c, g.url(sb, "/")); body != "hello" {
		t.Errorf("with the agent back: %d %q", resp.StatusCode, body)
	}
}

// With the bus away, routes stay; when it is back, so is the news.
func TestBusAway(t *testing.T) {
	dir := t.TempDir()
	first := bustest.Server(t, func(o *server.Options) { o.StoreDir = dir })
	port := first.Addr().(*net.TCPAddr).Port
	nc, js := bustest.Connect(t, first)
	if err := topology.Ensure(t.Context(), js, topology.Options{}); err != nil {
		t.Fatal(err)
	}
	g := newRigOn(t, nc, js, Config{})
	a := g.agent()
	sb := g.app(a, http.HandlerFunc(hello))
	first.Shutdown()
	first.WaitForShutdown()
	for range 3 { // a new connection each, so that nothing is kept
		if _, body := get(t, g.client(true), g.url(sb, "/")); body != "hello" {
			t.Fatalf("without the bus: %q", body)
		}
	}
	g.relay.apps.CloseIdleConnections()
	if _, body := get(t, g.client(false), g.url(sb, "/")); body != "hello" {
		t.Fatalf("without the bus, a new stream: %q", body)
	}
	bustest.Server(t, func(o *server.Options) {
		o.StoreDir = dir
		o.Port = port
	})
	eventually(t, "the bus is back", nc.IsConnected)
	g.known(g.step(sb, lifecycle.Finish{Epoch: 1}))
	resp, _ := get(t, g.client(true), g.url(sb, "/"))
	wantReason(t, resp, 410, ReasonEnded)
}

// When the relay stops, requests under way finish, held ones are let go, and
// what does not end is cut after the drain.
func TestDrain(t *testing.T) {
	g := newRig(t, Config{Drain: 3 * time.Second})
	a := g.agent()
	entered, finish := make(chan struct{}, 3), make(chan struct{})
	sb := g.app(a, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		if r.URL.Path == "/never" {
			<-r.Context().Done()
			return
		}
		<-finish
		_, _ = io.WriteString(w, "finished")
	}))
	waiting := g.known(g.accept(&siroccov1.Port{Port: 8000}))
	var wg sync.WaitGroup
	for _, h2 := range []bool{false, true} {
		wg.Go(func() {
			if resp, body := get(t, g.client(h2), g.url(sb, "/")); body != "finished" {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
		})
	}
	wg.Go(func() {
		resp, _ := get(t, g.client(true), g.url(waiting, "/"))
		wantReason(t, resp, 503, ReasonDraining)
	})
	wg.Go(func() {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", g.url(sb, "/never"), nil)
		if resp, err := g.client(true).Do(req); err == nil {
			_, err = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err == nil && resp.StatusCode == 200 {
				t.Error("a request that never ends ended well")
			}
		}
	})
	for range 3 {
		<-entered
	}
	g.heldAre(1)
	stopped := make(chan struct{})
	go func() { g.stop(); close(stopped) }()
	eventually(t, "new connections are refused", func() bool {
		c, err := g.dial(t.Context(), "", "")
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	close(finish)
	wg.Wait()
	<-stopped
}
