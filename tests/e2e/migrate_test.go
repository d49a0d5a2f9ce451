package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
)

// Running sandboxes move between two nodes, and nobody who uses them notices but that
// they had to wait. It needs a platform of its own.
func TestMigrate(t *testing.T) {
	t.Parallel()
	up, err := platform.StartUp("move", "--nodes", "2", "--set", "node-agent.private-registries="+registry.host())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			keepLogOf(up, "-move")
		}
		if err := up.Stop(); err != nil {
			t.Error(err)
		}
	})
	c, err := up.Client("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	w := &twoNodes{Up: up, c: c, names: nodes(t, c), http: httpClientOf(t, up.CA)}
	if len(w.names) != 2 {
		t.Fatalf("nodes: %v", w.names)
	}
	t.Run("sandboxes", func(t *testing.T) {
		t.Run("stay where no other node is open", w.cordoned)
		t.Run("keep all they have", w.keepsAll)
		t.Run("keep the logs of their command", w.keepsLogs)
		t.Run("are not moved by what is refused", w.refused)
		t.Run("stay where they are while a request does not end", w.tooLong)
		t.Run("end during a move", w.endsInBetween)
	})
	w.holds(t)
}

const counter = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"

// keepsAll: memory, files, processes, what they print, timers, and all that the record
// says, there and back.
func (w *twoNodes) keepsAll(t *testing.T) {
	t.Parallel()
	tags := map[string]string{"color": "blue"}
	s, base := w.web(t, &siroccov1.CreateSandboxRequest{Name: "mover", Tags: tags, MaxLifetime: seconds(600)})
	before := s.Record
	sum := w.must(t, http.MethodPost, base+"/keep?mb=64") // enough to be sent ahead
	sh(t, s, "head -c 3000000 /dev/urandom > /root/noise; sha256sum /root/noise > /root/sum; ln -s noise /root/link; mkdir -p /var/kept; chmod 700 /var/kept")
	// A process that is followed, one that has printed a lot that nobody has read, one
	// that waits for a timer, and one for input.
	followed := &numbers{}
	p, err := s.Start(t.Context(), sirocco.Command{ID: "followed", Args: []string{"sh", "-c", counter}})
	if err != nil {
		t.Fatal(err)
	}
	fctx, leave := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() {
		if _, err := p.Attach(fctx, followed, nil); fctx.Err() == nil {
			t.Errorf("follow an output: %v", err)
		}
	})
	defer following.Wait()
	defer leave()
	start := func(id string, in io.Reader, args ...string) *sirocco.Process {
		t.Helper()
		p, err := s.Start(t.Context(), sirocco.Command{ID: id, Args: args, Stdin: in})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	spew := start("spew", nil, "visitor", "spew", "50000")
	if _, err := spew.Wait(t.Context(), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	set := time.Now()
	timer := start("timer", nil, "sh", "-c", "sleep 6; echo woke")
	in, typed := io.Pipe()
	cat := start("cat", in, "cat")
	go func() { _ = cat.Input(t.Context(), in) }()
	_, _ = io.WriteString(typed, "before ")
	pid := sh(t, s, "pidof visitor")
	followed.awaitMore(t, 5)
	ws, _, err := websocket.Dial(t.Context(), base+"/ws", &websocket.DialOptions{HTTPClient: &http.Client{Transport: w.http.Transport}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ws.CloseNow() }()
	stop := w.counting(t, base)
	for i := range 2 {
		to := w.other(before)
		if i == 1 {
			to = before.GetPlacement().GetNode()
		}
		sb, err := s.Migrate(t.Context(), "", to)
		if err != nil {
			t.Fatal(err)
		}
		move := sb.GetMove()
		if sb.GetPlacement().GetNode() != to || sb.GetPlacement().GetEpoch() != uint64(i)+2 || sb.GetState() != siroccov1.State_STATE_RUNNING ||
			move.GetFailure() != "" || move.GetPause().AsDuration() <= 0 || move.GetBytes() < 64<<20 || move.GetEnded() == nil {
			t.Fatalf("after move %d: %v", i+1, sb)
		}
		if !maps.Equal(sb.GetSpec().GetTags(), tags) || sb.GetSpec().GetName() != "mover" || !sb.GetDesired().GetDeadline().AsTime().Equal(before.GetDesired().GetDeadline().AsTime()) ||
			sb.GetTunnels()[0].GetUrl() != before.GetTunnels()[0].GetUrl() || sb.GetEnd() != nil {
			t.Errorf("after move %d its record differs: %v", i+1, sb)
		}
		followed.awaitMore(t, 10)
		if got := w.must(t, http.MethodGet, base+"/kept"); got != sum {
			t.Errorf("after move %d its memory is another: %s, %s", i+1, got, sum)
		}
		if got := sh(t, s, "cd /root && sha256sum -c sum && readlink link && stat -c %a /var/kept"); !strings.HasSuffix(got, "OK\nnoise\n700") {
			t.Errorf("after move %d its files: %q", i+1, got)
		}
		if got := sh(t, s, "pidof visitor"); got != pid {
			t.Errorf("after move %d the server is process %s, not %s", i+1, got, pid)
		}
		t.Logf("move %d: paused for %v", i+1, move.GetPause().AsDuration())
	}
	if n := stop(); n < 10 {
		t.Errorf("%d requests in all", n)
	}
	// A connection that can't be kept is closed, and not left hanging.
	rctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if _, _, err := ws.Read(rctx); err == nil || rctx.Err() != nil {
		t.Errorf("the WebSocket from before: %v", err)
	}
	w.whatWasPrinted(t, spew)
	_, _ = io.WriteString(typed, "after")
	_ = typed.Close()
	var out bytes.Buffer
	if end, err := cat.Attach(t.Context(), &out, nil); err != nil || end.GetExitCode() != 0 || out.String() != "before after" {
		t.Errorf("input: %q, %v, %v", out.String(), end, err)
	}
	out.Reset()
	if end, err := timer.Attach(t.Context(), &out, nil); err != nil || end.GetExitCode() != 0 || out.String() != "woke\n" || time.Since(set) < 5*time.Second {
		t.Errorf("the timer, after %v: %q, %v, %v", time.Since(set), out.String(), end, err)
	}
	if s, err := w.c.Open(t.Context(), "mover"); err != nil || s.ID != before.GetId() {
		t.Errorf("by its name: %v, %v", s, err)
	}
}

// whatWasPrinted before the move is there, from any byte.
func (w *twoNodes) whatWasPrinted(t *testing.T, spew *sirocco.Process) {
	t.Helper()
	var want strings.Builder
	for n := range 50_000 {
		fmt.Fprintf(&want, "out %09d\n", n)
	}
	var out bytes.Buffer
	if end, err := spew.Attach(t.Context(), &out, io.Discard); err != nil || end.GetExitCode() != 0 || out.String() != want.String() {
		t.Errorf("%d of %d bytes, %v, %v", out.Len(), want.Len(), end, err)
	}
	out.Reset()
	if _, err := spew.AttachFrom(t.Context(), &out, io.Discard, 123_456, 0); err != nil || out.String() != want.String()[123_456:] {
		t.Errorf("from byte 123456: %d bytes, %v", out.Len(), err)
	}
}

func (w *twoNodes) keepsLogs(t *testing.T) {
	t.Parallel()
	s, _ := w.web(t, &siroccov1.CreateSandboxRequest{Command: []string{"sh", "-c", "visitor http 8000 & " + counter}})
	printed := func(more int) {
		t.Helper()
		lines := &numbers{}
		logs := func() string {
			r, err := s.Logs(t.Context(), false)
			if err != nil {
				return err.Error()
			}
			defer func() { _ = r.Close() }()
			n := &numbers{}
			if _, err := io.Copy(n, r); err != nil {
				t.Fatalf("the logs: %v", err)
			}
			lines = n
			return ""
		}
		platform.Eventually(t, 20*time.Second, func() string {
			if why := logs(); why != "" || lines.seen() < more {
				return fmt.Sprintf("%d lines: %s", lines.seen(), why)
			}
			return ""
		})
	}
	printed(20)
	// Who follows them misses nothing, and gets nothing twice.
	r, err := s.Logs(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	followed := &numbers{}
	var following sync.WaitGroup
	following.Go(func() {
		if _, err := io.Copy(followed, r); err != nil && followed.seen() < 100 {
			t.Errorf("the logs, after line %d: %v", followed.seen(), err)
		}
	})
	defer following.Wait()
	followed.awaitMore(t, 20)
	sb, err := s.Migrate(t.Context(), "", "")
	if err != nil || sb.GetPlacement().GetNode() != w.other(s.Record) {
		t.Fatalf("%v, %v", sb, err)
	}
	printed(100)
	followed.awaitMore(t, 20)
	if _, err := s.Terminate(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
}

func (w *twoNodes) refused(t *testing.T) {
	t.Parallel()
	s, base := w.web(t, &siroccov1.CreateSandboxRequest{})
	stop := w.counting(t, base)
	here := s.Record.GetPlacement().GetNode()
	for name, c := range map[string]struct {
		region, node string
		want         sirocco.Code
	}{
		"no such region":       {"atlantis", "", sirocco.InvalidArgument},
		"no such node":         {"", "node-of-nobody", sirocco.NoCapacity},
		"not a node's name":    {"", "a.b", sirocco.InvalidArgument},
		"the node where it is": {"", here, sirocco.InvalidArgument},
	} {
		_, err := s.Migrate(t.Context(), c.region, c.node)
		wantCode(t, name, err, c.want)
	}
	_, err := w.c.Sandbox("sb-00000000000000000000000000").Migrate(t.Context(), "", "")
	wantCode(t, "no such sandbox", err, sirocco.NotFound)
	// A move under way, which waits for a request, is the only one.
	var holding sync.WaitGroup
	holding.Go(func() {
		if body, err := w.ask(t.Context(), http.MethodGet, base+"/hold?for=4s"); err != nil || body != "held" {
			t.Errorf("a request under way when a move began: %q, %v", body, err)
		}
	})
	w.awaitRequest(t, s)
	holding.Go(func() {
		if _, err := s.Migrate(t.Context(), "", ""); err != nil {
			t.Errorf("the move that was first: %v", err)
		}
	})
	w.await(t, s, "that it moves", func(sb *siroccov1.Sandbox) bool { return sb.GetState() == siroccov1.State_STATE_MIGRATING })
	_, err = s.Migrate(t.Context(), "", "")
	wantCode(t, "another move is under way", err, sirocco.FailedPrecondition)
	holding.Wait()
	if n := stop(); n == 0 {
		t.Error("no request was made meanwhile")
	}
	sb, err := w.c.Get(t.Context(), s.ID)
	if err != nil || sb.GetPlacement().GetEpoch() != 2 || sb.GetPlacement().GetNode() == here {
		t.Errorf("it moved once: %v, %v", sb.GetPlacement(), err)
	}
	if _, err := s.Terminate(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	_, err = s.Migrate(t.Context(), "", "")
	wantCode(t, "it has ended", err, sirocco.FailedPrecondition)
}

// tooLong: what must not be cut keeps a sandbox where it is.
func (w *twoNodes) tooLong(t *testing.T) {
	t.Parallel()
	s, base := w.web(t, &siroccov1.CreateSandboxRequest{})
	w.must(t, http.MethodPost, base+"/count")
	var holding sync.WaitGroup
	holding.Go(func() {
		if body, err := w.ask(t.Context(), http.MethodGet, base+"/hold?for=15s"); err != nil || body != "held" {
			t.Errorf("the request: %q, %v", body, err)
		}
	})
	w.awaitRequest(t, s)
	_, err := s.Migrate(t.Context(), "", "")
	wantCode(t, "a request that does not end", err, sirocco.Unavailable)
	sb := w.await(t, s, "that it runs", func(sb *siroccov1.Sandbox) bool { return sb.GetState() == siroccov1.State_STATE_RUNNING })
	if sb.GetPlacement().GetEpoch() != 1 || sb.GetMove().GetFailureCode() != string(sirocco.Unavailable) || sb.GetMove().GetFailure() == "" {
		t.Errorf("after a move that was called off: %v", sb)
	}
	if got := w.must(t, http.MethodPost, base+"/count"); !strings.HasSuffix(got, " 2") {
		t.Errorf("after a move that was called off: %q", got)
	}
	holding.Wait()
}

func (w *twoNodes) endsInBetween(t *testing.T) {
	t.Parallel()
	s, base := w.web(t, &siroccov1.CreateSandboxRequest{})
	hctx, cut := context.WithCancel(t.Context())
	var holding sync.WaitGroup
	holding.Go(func() { _, _ = w.ask(hctx, http.MethodGet, base+"/hold?for=30s") }) // it goes down with the sandbox
	defer holding.Wait()
	defer cut()
	w.awaitRequest(t, s)
	moved := make(chan error, 1)
	go func() {
		_, err := s.Migrate(t.Context(), "", "")
		moved <- err
	}()
	w.await(t, s, "that it moves", func(sb *siroccov1.Sandbox) bool { return sb.GetState() == siroccov1.State_STATE_MIGRATING })
	began := time.Now()
	sb, err := s.Terminate(t.Context(), "enough")
	if err != nil || sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_USER || sb.GetEnd().GetMessage() != "enough" {
		t.Errorf("it ended by %v, %v", sb.GetEnd(), err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("its end took %v", took)
	}
	wantCode(t, "a move of what has ended", <-moved, sirocco.FailedPrecondition)
}

// cordoned: the other node takes nothing. The others wait meanwhile.
func (w *twoNodes) cordoned(t *testing.T) {
	s, base := w.web(t, &siroccov1.CreateSandboxRequest{})
	w.must(t, http.MethodPost, base+"/count")
	other := w.other(s.Record)
	if _, err := w.c.Nodes().Cordon(t.Context(), connect.NewRequest(&siroccov1.CordonNodeRequest{Name: other})); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"", other} {
		_, err := s.Migrate(t.Context(), "", node)
		var e *sirocco.Error
		if !errors.As(err, &e) || e.Code != sirocco.NoCapacity || !strings.Contains(e.Message, "cordoned") {
			t.Errorf("to %q: %v", node, err)
		}
	}
	sb, err := w.c.Get(t.Context(), s.ID)
	if err != nil || sb.GetState() != siroccov1.State_STATE_RUNNING || sb.GetPlacement().GetEpoch() != 1 || sb.GetMove() != nil {
		t.Errorf("it is %v, %v", sb, err)
	}
	if got := w.must(t, http.MethodPost, base+"/count"); !strings.HasSuffix(got, " 2") {
		t.Errorf("it answered %q", got)
	}
	if _, err := w.c.Nodes().Cordon(t.Context(), connect.NewRequest(&siroccov1.CordonNodeRequest{Name: other, Lift: true})); err != nil {
		t.Fatal(err)
	}
}
