package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/invariants"
	"github.com/sirocco-run/sirocco/pkg/rundir"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
)

// twoNodes is a platform of two nodes.
type twoNodes struct {
	*platform.Up
	c     *sirocco.Client
	names []string
	http  *http.Client
}

// web makes a sandbox with the visitor's server, and returns the URL of its tunnel.
func (w *twoNodes) web(t *testing.T, req *siroccov1.CreateSandboxRequest) (*sirocco.Sandbox, string) {
	t.Helper()
	if req.Command == nil {
		req.Command = []string{"visitor", "http", "8000"}
	}
	req.Image, req.Ports, req.Readiness = visitorImage, []*siroccov1.Port{{Port: 8000}}, &siroccov1.Probe{TcpPort: 8000}
	req.Resources = &siroccov1.Resources{CpuRequestMillis: 50, MemoryRequestBytes: 64 << 20}
	s, err := w.c.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := s.Terminate(ctx, ""); err != nil {
			t.Errorf("end %s: %v", s.ID, err)
		}
	})
	if s.Record.GetState() != siroccov1.State_STATE_RUNNING {
		t.Fatalf("it does not run: %v", s.Record.GetEnd())
	}
	return s, strings.TrimSuffix(s.Record.GetTunnels()[0].GetUrl(), "/")
}

// other is the node where a sandbox is not.
func (w *twoNodes) other(sb *siroccov1.Sandbox) string {
	if sb.GetPlacement().GetNode() == w.names[0] {
		return w.names[1]
	}
	return w.names[0]
}

// ask makes a request that must be answered with 200.
func (w *twoNodes) ask(ctx context.Context, method, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := w.http.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

func (w *twoNodes) must(t *testing.T, method, url string) string {
	t.Helper()
	body, err := w.ask(t.Context(), method, url)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// counting asks the server to count, again and again until stop, and fails unless each
// request was counted once, by one process.
func (w *twoNodes) counting(t *testing.T, base string) (stop func() int) {
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	n, last := 0, ""
	asking.Go(func() {
		for ctx.Err() == nil {
			body, err := w.ask(context.WithoutCancel(ctx), http.MethodPost, base+"/count")
			if err != nil {
				t.Errorf("request %d: %v", n+1, err)
				return
			}
			nonce, count, _ := strings.Cut(body, " ")
			if n++; count != strconv.Itoa(n) || last != "" && nonce != last {
				t.Errorf("request %d was answered with %q; the process was %s", n, body, last)
				return
			}
			last = nonce
		}
	})
	return func() int {
		cancel()
		asking.Wait()
		return n
	}
}

// numbers takes the numbers from 1, a line each, and nothing else.
type numbers struct {
	mu   sync.Mutex
	last int
	rest []byte
}

func (n *numbers) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rest = append(n.rest, b...)
	for {
		line, rest, ok := bytes.Cut(n.rest, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		if got, err := strconv.Atoi(string(line)); err != nil || got != n.last+1 {
			return 0, fmt.Errorf("%q follows %d", line, n.last)
		}
		n.last, n.rest = n.last+1, rest
	}
}

func (n *numbers) seen() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last
}

// awaitMore waits until more numbers have come.
func (n *numbers) awaitMore(t *testing.T, more int) {
	t.Helper()
	want := n.seen() + more
	platform.Eventually(t, 20*time.Second, func() string {
		if got := n.seen(); got < want {
			return fmt.Sprintf("the output stands at %d", got)
		}
		return ""
	})
}

// awaitRequest waits until a request to /hold is being handled: its connection is open.
func (w *twoNodes) awaitRequest(t *testing.T, s *sirocco.Sandbox) {
	t.Helper()
	// A command takes longer than a request needs to get there.
	sh(t, s, "true")
}

// await waits until a record is as wanted.
func (w *twoNodes) await(t *testing.T, s *sirocco.Sandbox, what string, done func(*siroccov1.Sandbox) bool) *siroccov1.Sandbox {
	t.Helper()
	var sb *siroccov1.Sandbox
	platform.Eventually(t, 30*time.Second, func() string {
		var err error
		if sb, err = w.c.Get(t.Context(), s.ID); err != nil {
			return err.Error()
		}
		if !done(sb) {
			return fmt.Sprintf("%s: waiting for %s: %v %v", s.ID, what, sb.GetState(), sb.GetMove())
		}
		return ""
	})
	return sb
}

// holds checks that nothing of any move is left.
func (w *twoNodes) holds(t *testing.T) {
	t.Helper()
	nc, err := platform.DialBus(w.Data(), w.Bus)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var all []invariants.Node
	for _, name := range w.names {
		all = append(all, invariants.Node{Name: name, RunDir: rundir.Of(name)})
	}
	region, err := invariants.New(t.Context(), nc, all)
	if err != nil {
		t.Fatal(err)
	}
	for _, broken := range region.Settled(t.Context(), time.Minute) {
		t.Error(broken)
	}
}
