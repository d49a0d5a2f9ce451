package chaos

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/hostcheck"
	"github.com/sirocco-run/sirocco/pkg/invariants"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// envAway says for how long the bus is away; `make soak` sets it.
	envAway = "SIROCCO_AWAY"
	// shortAway is longer than every period of a service that touches the bus: an
	// agent writes its entry every 3 s, which lives 10 s, compares sandboxes with
	// their records every 20 s and sweeps its machine every 30 s.
	shortAway = 35 * time.Second
	// lostAfter is less, so that on its return the bus finds nodes that have been
	// silent for longer than a node may be.
	lostAfter = 5 * time.Second
	// deadlineGrace is how late a node may end a sandbox.
	deadlineGrace = 5 * time.Second
)

func away(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv(envAway)
	if text == "" {
		return shortAway
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", envAway, err)
	}
	return d
}

// With the bus away, everything of running sandboxes goes on and deadlines hold;
// when it is back, the records catch up and nothing has been lost.
func TestBusAway(t *testing.T) {
	for name, fault := range map[string]struct{ begin, end func(*platform.Process) error }{
		"killed": {func(p *platform.Process) error { p.Kill(); return nil }, (*platform.Process).Start},
		"hangs":  {func(p *platform.Process) error { p.Freeze(); return nil }, func(p *platform.Process) error { p.Thaw(); return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			length := away(t)
			flags := platform.Flags{}
			if length < 15*time.Minute {
				flags["reaper"] = []string{"--node-lost-after", lostAfter.String()}
			}
			tr := begin(t, name, flags)
			bus := tr.fleet.Service("bus")
			// A call that fails is not tried again, nor is a stream that breaks.
			once, err := sirocco.New(sirocco.Config{API: tr.fleet.API, Key: tr.fleet.Key, CAFile: tr.fleet.CA, Retry: -1, Resume: time.Nanosecond})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(once.Close)
			u := takeUp(t, tr, once, length)
			if err := fault.begin(bus); err != nil {
				t.Fatal(err)
			}
			back := func() error { return nil }
			defer func() { _ = back() }()
			back = func() error { return fault.end(bus) }
			refused := make(chan error, 1)
			go func() {
				_, err := once.Create(t.Context(), &siroccov1.CreateSandboxRequest{IdempotencyKey: "while-away", MaxLifetime: durationpb.New(time.Hour)})
				refused <- err
			}()
			u.goOn(length)
			switch err := <-refused; sirocco.CodeOf(err) {
			case sirocco.Unavailable, sirocco.Deadline:
			default:
				t.Errorf("a create with the bus away: %v, want a stated refusal", err)
			}
			if err := back(); err != nil {
				t.Fatal(err)
			}
			healed := time.Now()
			back = func() error { return nil }
			u.turn()
			u.caughtUp(healed)
		})
	}
}

// usage is a client at work in a region whose bus goes away.
type usage struct {
	*trial
	once *sirocco.Client
	v    *veteran
	// anew asks the tunnel on a new connection each time, kept on one that stays.
	anew, kept *http.Client
	// in and out are the two ends of a process that is attached to.
	in      *io.PipeWriter
	out     *bufio.Reader
	ended   chan error
	doomed  *sirocco.Sandbox // its max_lifetime ends with the bus away
	leaves  *sirocco.Sandbox // its command ends then
	turns   int
	slowest time.Duration
	overdue time.Duration // how late doomed was gone
	gone    bool          // doomed is off the machine
	cell    string        // by which doomed is found on the machine
}

func takeUp(t *testing.T, tr *trial, once *sirocco.Client, length time.Duration) *usage {
	t.Helper()
	u := &usage{trial: tr, once: once, anew: webClient(t, tr.fleet.CA), kept: webClient(t, tr.fleet.CA), ended: make(chan error, 1)}
	u.kept.Transport.(*http.Transport).DisableKeepAlives = false
	t.Cleanup(u.kept.CloseIdleConnections)
	u.v = enlist(t, once)
	in, stdin := io.Pipe()
	stdout, out := io.Pipe()
	u.in, u.out = stdin, bufio.NewReader(stdout)
	go func() {
		end, err := u.v.Run(t.Context(), sirocco.Command{ID: "echo", Args: []string{"cat"}, Stdin: in, Stdout: out})
		if err == nil && end.GetExitCode() != 0 {
			err = fmt.Errorf("it ended with %v", end)
		}
		_ = out.CloseWithError(io.ErrUnexpectedEOF)
		u.ended <- err
	}()
	u.turn()
	u.leaves = create(t, once, &siroccov1.CreateSandboxRequest{Command: []string{"sh", "-c", "sleep 10; exit 7"}, MaxLifetime: durationpb.New(length + time.Hour)})
	u.doomed = create(t, once, &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(15 * time.Second)})
	// The node's note about it may just be written anew.
	platform.Eventually(u.T, 10*time.Second, func() string {
		for _, n := range u.nodes {
			if cell, err := invariants.MachineOf(n, u.doomed.ID); err == nil {
				u.cell = cell
			}
		}
		if !u.onMachine(u.cell) {
			return u.doomed.ID + " is not found on the machine"
		}
		return ""
	})
	return u
}

// goOn uses the sandbox for so long; what fails fails the test.
func (u *usage) goOn(length time.Duration) {
	u.Helper()
	pace, look := time.NewTicker(length/200), time.NewTicker(100*time.Millisecond)
	defer pace.Stop()
	defer look.Stop()
	for until := time.Now().Add(length); time.Now().Before(until) && !u.Failed(); {
		select {
		case <-pace.C:
			u.turn()
		case <-look.C:
			u.checkDeadline()
		}
	}
	if !u.gone {
		u.Errorf("%s was to end while the bus was away", u.doomed.ID)
	}
	u.Logf("%d turns with the bus away, the slowest took %v; a deadline was applied within %v", u.turns, u.slowest.Round(time.Millisecond), u.overdue.Round(time.Millisecond))
}

// turn does once everything that a client can do with a running sandbox.
func (u *usage) turn() {
	u.Helper()
	ctx, cancel := context.WithTimeout(u.Context(), 20*time.Second)
	defer cancel()
	u.turns++
	began := time.Now()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"a new exec, and a tunnel on a new connection", func(ctx context.Context) error {
			if why := u.v.serves(ctx, u.anew); why != "" {
				return fmt.Errorf("%s", why)
			}
			return nil
		}},
		{"a process that was attached to before", u.echo},
		{"a file written and read", u.file},
		{"a tunnel on a connection that was open", u.again},
		{"a fresh token", func(ctx context.Context) error { _, err := u.v.Token(ctx, 0); return err }},
	} {
		if err := step.do(ctx); err != nil {
			u.Errorf("turn %d: %s: %v", u.turns, step.what, err)
		}
	}
	u.slowest = max(u.slowest, time.Since(began))
}

func (u *usage) echo(context.Context) error {
	line := fmt.Sprintf("line %d\n", u.turns)
	if _, err := io.WriteString(u.in, line); err != nil {
		return err
	}
	got, err := u.out.ReadString('\n')
	if err == nil && got != line {
		err = fmt.Errorf("%q came back as %q", line, got)
	}
	return err
}

func (u *usage) file(ctx context.Context) error {
	want := []byte(fmt.Sprintf("content %d", u.turns))
	if _, err := u.v.WriteFile(ctx, "/tmp/file", bytes.NewReader(want), sirocco.WriteOptions{}); err != nil {
		return err
	}
	r, err := u.v.ReadFile(ctx, "/tmp/file", 0, 0)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	got, err := io.ReadAll(r)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%q was read as %q", want, got)
	}
	return err
}

// again asks the tunnel on the connection that the first turn made.
func (u *usage) again(ctx context.Context) error {
	var info httptrace.GotConnInfo
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { info = i }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.v.Record.GetTunnels()[0].GetUrl()+"pid", nil)
	if err != nil {
		return err
	}
	resp, err := u.kept.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK || strings.TrimSpace(string(body)) != u.v.pid:
		return fmt.Errorf("%s, %q", resp.Status, body)
	case u.turns > 1 && !info.Reused:
		return fmt.Errorf("the connection did not last")
	}
	return nil
}

// checkDeadline looks whether doomed is on the machine longer than it may be.
func (u *usage) checkDeadline() {
	u.Helper()
	late := time.Since(u.doomed.Record.GetDesired().GetDeadline().AsTime())
	if u.gone || late < 0 {
		return
	}
	if u.overdue = late; !u.onMachine(u.cell) {
		u.gone = true
	} else if late > deadlineGrace {
		u.Errorf("%s is still there %v after its deadline", u.doomed.ID, late)
	}
}

func (u *usage) onMachine(cell string) bool {
	for _, n := range u.nodes {
		snap := hostcheck.Take(invariants.Scope(n))
		for _, kind := range []string{"process", "cgroup", "mount"} {
			for what := range snap[kind] {
				if cell != "" && strings.Contains(what, cell) {
					return true
				}
			}
		}
	}
	return false
}

// caughtUp checks that with the bus back everything comes to be as the records
// say, and the records as it was.
func (u *usage) caughtUp(healed time.Time) {
	u.Helper()
	ctx := u.Context()
	if err := platform.Poll(settle-time.Since(healed), func() string { return strings.Join(u.region.Broken(ctx), "\n") }); err != nil {
		u.Error(err)
	}
	u.Logf("everything is consistent %v after the bus was back", time.Since(healed).Round(time.Millisecond))
	if why := u.v.same(ctx, u.client); why != "" {
		u.Error(why)
	}
	if sb := ended(u.T, u.client, u.doomed); sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_MAX_LIFETIME {
		u.Errorf("the one whose time was over: %v", sb.GetEnd())
	}
	if sb := ended(u.T, u.client, u.leaves); sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_EXITED || sb.GetEnd().GetExitCode() != 7 {
		u.Errorf("the one whose command ended: %v", sb.GetEnd())
	}
	// What was refused meanwhile works with the same key.
	create(u.T, u.client, &siroccov1.CreateSandboxRequest{IdempotencyKey: "while-away", MaxLifetime: durationpb.New(time.Hour)})
	u.turn()
	if err := u.in.Close(); err != nil {
		u.Error(err)
	}
	if err := <-u.ended; err != nil {
		u.Errorf("the process that was attached to: %v", err)
	}
	if why := u.serviceGone(); why != "" {
		u.Error(why)
	}
}
