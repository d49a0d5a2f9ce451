package relay

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/link"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// served makes a running sandbox whose port 8000 leads to h on both agents.
func (g *rig) served(from, to *agent, h http.HandlerFunc) *siroccov1.Sandbox {
	sb := g.accept(&siroccov1.Port{Port: 8000})
	server := httptest.NewServer(h)
	g.t.Cleanup(server.Close)
	from.listen(sb.GetId(), 8000, server.Listener.Addr().String())
	to.listen(sb.GetId(), 8000, server.Listener.Addr().String())
	return g.placed(sb, from)
}

// Requests of all methods over both protocols, without end, through many moves, some
// of them called off: none fails, and none is carried out twice.
func TestNoRequestFailsInAMove(t *testing.T) {
	g := newRig(t, Config{})
	from, to := g.agent(), g.agent()
	var mu sync.Mutex
	seen := map[string]int{}
	sb := g.served(from, to, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		seen[string(body)]++
		mu.Unlock()
		_, _ = w.Write(body)
	})
	url, stop := g.url(sb, "/"), make(chan struct{})
	var wg sync.WaitGroup
	var done atomic.Int64
	for worker := range 8 {
		c := g.client(worker%2 == 0)
		method := []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodPost}[worker/2]
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				want := fmt.Sprintf("%d/%d", worker, i)
				var in io.Reader = strings.NewReader(want)
				if worker >= 4 {
					in = io.MultiReader(in) // of unknown length
				}
				req, _ := http.NewRequestWithContext(t.Context(), method, url, in)
				resp, err := c.Do(req)
				if err != nil {
					t.Errorf("%s %s: %v", method, want, err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || string(body) != want {
					t.Errorf("%s %s: %d %q, %v", method, want, resp.StatusCode, body, err)
					return
				}
				done.Add(1)
			}
		})
	}
	enough := func() {
		now := done.Load()
		eventually(t, "requests are answered", func() bool { return t.Failed() || done.Load() > now+20 })
	}
	for i := range 20 {
		enough()
		if i%4 == 3 {
			sb = g.migrate(sb, "test", to)
			from.quiet(sb.GetId())
			sb = g.callOff(sb)
			from.open(sb.GetId())
			continue
		}
		sb = g.move(sb, from, to)
		from, to = to, from
	}
	enough()
	close(stop)
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	for body, n := range seen {
		if n != 1 {
			t.Errorf("%q was carried out %d times", body, n)
		}
	}
}

// While a sandbox moves nothing is kept open to it but what is under way, and that is
// answered where it is. When the move is called off, everything goes on there.
func TestMoveCalledOff(t *testing.T) {
	both(t, func(t *testing.T, h2 bool) {
		g := newRig(t, Config{})
		from, to := g.agent(), g.agent()
		entered, finish := make(chan struct{}), make(chan struct{})
		sb := g.served(from, to, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				entered <- struct{}{}
				<-finish
			}
			_, _ = io.WriteString(w, r.Method)
		})
		c, url := g.client(h2), g.url(sb, "/")
		var wg sync.WaitGroup
		ask := func(method string) {
			wg.Go(func() {
				req, _ := http.NewRequestWithContext(t.Context(), method, url, nil)
				if resp, body := do(t, c, req); body != method {
					t.Errorf("%s: %d %q", method, resp.StatusCode, body)
				}
			})
		}
		ask(http.MethodPost)
		<-entered
		get(t, c, g.url(sb, "/"))
		get(t, c, g.url(sb, "/"))
		streams := g.relay.router.conns.count.Load
		if n := streams(); n != 2 {
			t.Fatalf("%d streams, want 2", n)
		}
		sb = g.migrate(sb, "test", to)
		eventually(t, "idle streams are closed", func() bool { return streams() == 1 })
		if _, body := get(t, c, url); body != "GET" {
			t.Errorf("before it comes to rest: %q", body)
		}
		from.shutDoor(sb.GetId())
		for range 3 {
			ask(http.MethodGet)
		}
		g.heldAre(3)
		close(finish)
		eventually(t, "the stream is closed after its answer", func() bool { return streams() == 0 })
		from.open(sb.GetId())
		g.callOff(sb)
		wg.Wait()
		if n := len(to.epochs()); n != 0 {
			t.Errorf("the other node was asked")
		}
	})
}

// What is cut off before its answer is sent again if it may be: by its method, its
// Idempotency-Key, or because the sandbox has not heard of it.
func TestCutOffBeforeTheAnswer(t *testing.T) {
	g := newRig(t, Config{})
	small, large := "small", strings.Repeat("x", maxKept+1)
	for name, row := range map[string]struct {
		method, key, body string
		why               link.Break
		again             bool
	}{
		"GET":               {method: "GET", why: link.BrokeMoved, again: true},
		"GET, record first": {method: "GET", again: true},
		"PUT":               {method: "PUT", body: small, why: link.BrokeMoved, again: true},
		"POST":              {method: "POST", body: small, why: link.BrokeMoved},
		"POST, record":      {method: "POST", body: small},
		"POST with a key":   {method: "POST", key: "k", body: small, why: link.BrokeMoved, again: true},
		"POST unheard":      {method: "POST", body: small, why: link.BrokeUnheard, again: true},
		"a large PUT":       {method: "PUT", body: large, why: link.BrokeMoved},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, h2 bool) {
				from, to := g.agent(), g.agent()
				entered, forever := make(chan string, 10), make(chan struct{})
				defer close(forever)
				sb := g.served(from, to, func(w http.ResponseWriter, r *http.Request) {
					body, _ := io.ReadAll(r.Body)
					entered <- string(body)
					<-forever
				})
				to.listen(sb.GetId(), 8000, localServer(t, func(w http.ResponseWriter, r *http.Request) {
					body, _ := io.ReadAll(r.Body)
					_, _ = io.WriteString(w, "new "+string(body))
				}))
				var wg sync.WaitGroup
				url := g.url(sb, "/")
				wg.Go(func() {
					req, _ := http.NewRequestWithContext(t.Context(), row.method, url, strings.NewReader(row.body))
					if row.key != "" {
						req.Header.Set("Idempotency-Key", row.key)
					}
					switch resp, body := do(t, g.client(h2), req); {
					case row.again && body != "new "+row.body:
						t.Errorf("%d %q", resp.StatusCode, body)
					case !row.again:
						wantReason(t, resp, http.StatusBadGateway, ReasonMoved)
					}
				})
				if got := <-entered; got != row.body {
					t.Errorf("%d bytes, want %d", len(got), len(row.body))
				}
				sb = g.migrate(sb, "test", to)
				if row.why != 0 {
					g.known(sb)
					from.shutDoor(sb.GetId())
					from.breakOff(sb.GetId(), row.why) // before the relay knows how it went
					if row.again {
						g.heldAre(1)
					}
				}
				g.arrive(g.depart(sb), to)
				wg.Wait()
			})
		})
	}
}

// A connection that breaks with no move about is the app's own affair.
func TestNoMoveNoSecondTry(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	var n atomic.Int32
	sb := g.served(a, a, func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		panic(http.ErrAbortHandler)
	})
	resp, _ := get(t, g.client(true), g.url(sb, "/"))
	if wantReason(t, resp, 502, ReasonAppBroke); n.Load() != 1 {
		t.Errorf("it was asked %d times", n.Load())
	}
}

func TestHeldTooMany(t *testing.T) {
	g := newRig(t, Config{MaxHeld: 1})
	a := g.agent()
	sb := g.served(a, a, hello)
	sb = g.known(g.migrate(sb, "test", a))
	a.shutDoor(sb.GetId())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, body := get(t, g.client(true), g.url(sb, "/")); body != "hello" {
			t.Errorf("%q", body)
		}
	})
	g.heldAre(1)
	resp, _ := get(t, g.client(true), g.url(sb, "/"))
	wantReason(t, resp, 503, ReasonOverloaded)
	a.open(sb.GetId())
	g.callOff(sb)
	wg.Wait()
}

func TestHeldTooLong(t *testing.T) {
	g := newRig(t, Config{MoveWait: 50 * time.Millisecond})
	a := g.agent()
	sb := g.served(a, a, hello)
	a.quiet(sb.GetId()) // it knows of a move that the relay knows nothing of
	resp, _ := get(t, g.client(true), g.url(sb, "/"))
	wantReason(t, resp, 503, ReasonStillMoving)
	sb = g.known(g.migrate(sb, "test", a))
	resp, _ = get(t, g.client(true), g.url(sb, "/"))
	wantReason(t, resp, 503, ReasonStillMoving)
}

func TestRelayStopsWhileASandboxMoves(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	sb := g.served(a, a, hello)
	sb = g.known(g.migrate(sb, "test", a))
	a.shutDoor(sb.GetId())
	var wg sync.WaitGroup
	for _, h2 := range []bool{false, true} {
		c := g.client(h2)
		wg.Go(func() {
			resp, _ := get(t, c, g.url(sb, "/"))
			wantReason(t, resp, 503, ReasonDraining)
		})
	}
	g.heldAre(2)
	g.stop()
	wg.Wait()
}

// The record of a sandbox that has gone to another region says where it is before it
// says that it runs there: the node is asked until it does. The sandbox's raw ports
// stay where they are.
func TestIntoAnotherRegion(t *testing.T) {
	g := newRig(t, Config{})
	from, to := g.agent(), g.agent()
	sb := g.served(from, to, hello)
	sb = g.migrate(sb, "other", to)
	from.quiet(sb.GetId())
	sb = g.known(g.depart(sb))
	from.run(sb.GetId(), 0)
	var wg sync.WaitGroup
	for _, h2 := range []bool{false, true} {
		wg.Go(func() {
			req, _ := http.NewRequestWithContext(t.Context(), "POST", g.url(sb, "/"), strings.NewReader("x"))
			if resp, body := do(t, g.client(h2), req); body != "hello" {
				t.Errorf("%d %q", resp.StatusCode, body)
			}
		})
	}
	eventually(t, "the other node was asked in vain", func() bool { return to.epochs()[2] > 3 })
	to.run(sb.GetId(), 2)
	wg.Wait()
}

// A call of the data services that the agent does not make is made where the sandbox
// goes.
func TestDataCallsInAMove(t *testing.T) {
	g := newRig(t, Config{})
	from, to := g.agent(), g.agent()
	sb := g.accept()
	from.data = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(link.HeaderLeaving, "true")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	to.data = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = io.WriteString(w, "new "+string(body))
	})
	sb = g.placed(sb, from)
	bearer := g.token("acme", sb.GetId(), time.Now().Add(time.Hour))
	var wg sync.WaitGroup
	wg.Go(func() {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://"+g.front.DataHost()+"/x", strings.NewReader("body"))
		req.Header.Set("Authorization", "Bearer "+bearer)
		if resp, body := do(t, g.client(true), req); body != "new body" || resp.Header.Get(link.HeaderLeaving) != "" {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
	})
	eventually(t, "the agent was asked", func() bool { return from.epochs()[1] > 0 })
	g.arrive(g.depart(g.migrate(sb, "test", to)), to)
	wg.Wait()
}

// Calls share a stream: it ends with the last that is under way.
func TestDataStreamIsClosedAfterItsLastCall(t *testing.T) {
	g := newRig(t, Config{})
	a := g.agent()
	entered, finish := make(chan struct{}), make(chan struct{})
	a.data = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			entered <- struct{}{}
			<-finish
		}
		_, _ = io.WriteString(w, "done")
	})
	sb := g.placed(g.accept(), a)
	bearer := "Bearer " + g.token("acme", sb.GetId(), time.Now().Add(time.Hour))
	c := g.client(true)
	call := func(path string) {
		if resp, body := get(t, c, "https://"+g.front.DataHost()+path, "Authorization", bearer); body != "done" {
			t.Errorf("%s: %d %q", path, resp.StatusCode, body)
		}
	}
	streams := g.relay.router.conns.count.Load
	call("/short")
	if n := streams(); n != 1 {
		t.Fatalf("%d streams, want 1", n)
	}
	var wg sync.WaitGroup
	wg.Go(func() { call("/long") })
	<-entered
	sb = g.known(g.migrate(sb, "test", a))
	a.shutDoor(sb.GetId())
	wg.Go(func() { call("/short") })
	g.heldAre(1)
	if n := streams(); n != 1 {
		t.Errorf("%d streams, want 1", n)
	}
	close(finish)
	eventually(t, "the stream is closed", func() bool { return streams() == 0 })
	a.open(sb.GetId())
	g.callOff(sb)
	wg.Wait()
}
