package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
)

func TestExec(t *testing.T) {
	t.Parallel()
	s := create(t, &siroccov1.CreateSandboxRequest{Env: map[string]string{"A": "of the sandbox", "B": "b"}})
	for name, c := range map[string]struct {
		cmd    sirocco.Command
		out    string
		err    string
		code   int32
		signal string
		late   bool
	}{
		"both outputs":       {cmd: sirocco.Command{Args: []string{"sh", "-c", "echo one; echo two >&2"}}, out: "one\n", err: "two\n"},
		"exit code":          {cmd: sirocco.Command{Args: []string{"sh", "-c", "exit 77"}}, code: 77},
		"environment":        {cmd: sirocco.Command{Args: []string{"sh", "-c", "echo $A $B $C"}, Env: map[string]string{"A": "of the exec", "C": "c"}}, out: "of the exec b c\n"},
		"folder":             {cmd: sirocco.Command{Args: []string{"pwd"}, Workdir: "/tmp"}, out: "/tmp\n"},
		"user":               {cmd: sirocco.Command{Args: []string{"id", "-u"}, User: "1234:99", Workdir: "/tmp"}, out: "1234\n"},
		"input":              {cmd: sirocco.Command{Args: []string{"cat"}, Stdin: strings.NewReader("some input")}, out: "some input"},
		"no input":           {cmd: sirocco.Command{Args: []string{"cat"}}},
		"timeout":            {cmd: sirocco.Command{Args: []string{"sleep", "1000"}, Timeout: 300 * time.Millisecond}, code: 124, late: true, signal: "SIGKILL"},
		"killed by itself":   {cmd: sirocco.Command{Args: []string{"sh", "-c", "kill -9 $$"}}, code: 137, signal: "SIGKILL"},
		"hung up by itself":  {cmd: sirocco.Command{Args: []string{"sh", "-c", "kill -HUP $$"}}, code: 129, signal: "SIGHUP"},
		"grandchildren stay": {cmd: sirocco.Command{Args: []string{"sh", "-c", "sleep 1000 >/dev/null 2>&1 </dev/null & echo done"}}, out: "done\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := runWith(t, s, c.cmd)
			if r.GetExitCode() != c.code || r.out != c.out || r.err != c.err || r.GetTimedOut() != c.late || (!c.late && r.GetSignal() != c.signal) {
				t.Errorf("got %v, %q, %q", r.ExecEnd, r.out, r.err)
			}
		})
	}
	t.Run("what cannot be started", func(t *testing.T) {
		t.Parallel()
		for _, cmd := range []sirocco.Command{
			{Args: []string{"no-such-program"}}, {Args: nil}, {Args: []string{"sh"}, Workdir: "/no/such"}, {Args: []string{"sh"}, User: "nobody-here"},
			{Args: []string{"sh"}, ID: "a.b"}, {Args: []string{"sh"}, ID: "main"}, {Args: []string{"sh"}, Workdir: "/a/../b"},
		} {
			_, err := s.Start(t.Context(), cmd)
			wantCode(t, fmt.Sprint(cmd.Args, cmd.ID), err, sirocco.InvalidArgument)
		}
		_, err := s.Process("nothing").Wait(t.Context(), 0)
		wantCode(t, "wait for nothing", err, sirocco.NotFound)
	})
}

// What can't be started says which field of the request is to blame, and the
// image's folder is no obstacle to users that may not enter it.
func TestExecThatCannotStart(t *testing.T) {
	t.Parallel()
	s := create(t, nil)
	for name, c := range map[string]struct {
		cmd   sirocco.Command
		code  sirocco.Code
		field string
	}{
		"no such command": {sirocco.Command{Args: []string{"no-such-program"}}, sirocco.InvalidArgument, "command"},
		"no such file":    {sirocco.Command{Args: []string{"/no/such/program"}}, sirocco.InvalidArgument, "command"},
		"not executable":  {sirocco.Command{Args: []string{"/etc/passwd"}}, sirocco.PermissionDenied, "command"},
		"a folder":        {sirocco.Command{Args: []string{"/etc"}}, sirocco.PermissionDenied, "command"},
		"no such folder":  {sirocco.Command{Args: []string{"pwd"}, Workdir: "/no/such"}, sirocco.InvalidArgument, "workdir"},
		"closed folder":   {sirocco.Command{Args: []string{"pwd"}, User: "1234", Workdir: "/root"}, sirocco.PermissionDenied, "workdir"},
		"no such user":    {sirocco.Command{Args: []string{"pwd"}, User: "nobody-here"}, sirocco.InvalidArgument, "user"},
	} {
		_, err := s.Start(t.Context(), c.cmd)
		var e *sirocco.Error
		if !errors.As(err, &e) || e.Code != c.code || e.Field != c.field {
			t.Errorf("%s: %v, want %s (%s)", name, err, c.code, c.field)
		}
	}
	for user, want := range map[string]string{"": "/root\n", "user": "/home/user\n", "1234": "/\n", "1234:5678": "/\n"} {
		p, err := s.Start(t.Context(), sirocco.Command{Args: []string{"pwd"}, User: user})
		if err != nil {
			t.Errorf("as %q: %v", user, err)
			continue
		}
		var out lockedBuffer
		if end, err := p.Attach(t.Context(), &out, nil); err != nil || end.GetExitCode() != 0 || out.String() != want {
			t.Errorf("as %q: %q, want %q; %v, %v", user, out.String(), want, end, err)
		}
	}
}

func TestExecSignals(t *testing.T) {
	t.Parallel()
	s := create(t, &siroccov1.CreateSandboxRequest{Image: visitorImage})
	start := func(t *testing.T, args ...string) *sirocco.Process {
		t.Helper()
		p, err := s.Start(t.Context(), sirocco.Command{Args: args})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for signal, code := range map[string]int32{"TERM": 143, "SIGKILL": 137, "INT": 130, "HUP": 129} {
		p := start(t, "sleep", "1000")
		if err := p.Signal(t.Context(), signal); err != nil {
			t.Fatal(err)
		}
		if x, err := p.Wait(t.Context(), 10*time.Second); err != nil || x.GetEnd().GetExitCode() != code || x.GetEnd().GetTimedOut() {
			t.Errorf("SIG%s: %v, %v", signal, x.GetEnd(), err)
		}
		err := p.Signal(t.Context(), signal)
		wantCode(t, "signal to what has ended", err, sirocco.FailedPrecondition)
	}
	// A signal goes to the whole group, and may be caught.
	p := start(t, "visitor", "catch")
	var out lockedBuffer
	done := make(chan error, 1)
	go func() {
		end, err := p.Attach(t.Context(), &out, nil)
		if err == nil && end.GetExitCode() != 5 {
			err = errors.New(end.String())
		}
		done <- err
	}()
	platform.Eventually(t, 10*time.Second, func() string {
		if out.String() != "ready\n" {
			return "not ready"
		}
		return ""
	})
	if err := p.Signal(t.Context(), "SIGTERM"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || out.String() != "ready\ncaught\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	wantCode(t, "a signal that does not exist", start(t, "sleep", "1").Signal(t.Context(), "SIGNOTHING"), sirocco.InvalidArgument)
}

func TestExecTerminal(t *testing.T) {
	t.Parallel()
	s := create(t, &siroccov1.CreateSandboxRequest{Image: visitorImage})
	in, typed := io.Pipe()
	var out lockedBuffer
	p, err := s.Start(t.Context(), sirocco.Command{Args: []string{"sh"}, TTY: &siroccov1.TerminalSize{Rows: 24, Cols: 80}, Stdin: in})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.Input(t.Context(), in) }()
	done := make(chan *siroccov1.ExecEnd, 1)
	go func() {
		end, err := p.Attach(t.Context(), &out, nil)
		if err != nil {
			t.Error(err)
		}
		done <- end
	}()
	say := func(line, answer string) {
		t.Helper()
		if _, err := io.WriteString(typed, line); err != nil {
			t.Fatal(err)
		}
		platform.Eventually(t, 10*time.Second, func() string {
			if !strings.Contains(out.String(), answer) {
				return fmt.Sprintf("no %q in %q", answer, out.String())
			}
			return ""
		})
	}
	say("visitor size\n", "24 80")
	if err := p.Resize(t.Context(), &siroccov1.TerminalSize{Rows: 50, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	say("visitor size\n", "50 132")
	say("test -t 0 && echo it is a $((1+1))-way terminal\n", "it is a 2-way terminal")
	// Ctrl-C ends what runs in front, not the shell.
	say("echo ready; sleep 1000\n", "ready\r\n")
	say("\x03echo still $((40+2))\n", "still 42")
	_, _ = io.WriteString(typed, "exit 6\n")
	if end := <-done; end.GetExitCode() != 6 {
		t.Errorf("got %v", end)
	}
	plain, err := s.Start(t.Context(), sirocco.Command{Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, "resize without a terminal", plain.Resize(t.Context(), &siroccov1.TerminalSize{Rows: 1, Cols: 1}), sirocco.InvalidArgument)
}

// 10 MB of output on each stream; callers come and go, and each byte is there.
func TestOutputOutlivesItsReaders(t *testing.T) {
	t.Parallel()
	s := create(t, &siroccov1.CreateSandboxRequest{Image: visitorImage})
	const lines, width = 750_000, 14
	var want [2]string
	for i, word := range []string{"out", "err"} {
		var b strings.Builder
		for n := range lines {
			fmt.Fprintf(&b, "%s %09d\n", word, n)
		}
		want[i] = b.String()
	}
	p, err := s.Start(t.Context(), sirocco.Command{ID: "spew", Args: []string{"visitor", "spew", fmt.Sprint(lines)}})
	if err != nil {
		t.Fatal(err)
	}
	// Readers that leave in the middle, then come back where they were.
	for range 3 {
		ctx, leave := context.WithCancel(t.Context())
		_, err := p.Attach(ctx, &leaver{after: 1 << 20, leave: leave}, nil)
		leave()
		if err == nil {
			break // it ended before the reader left
		}
	}
	var out, errs bytes.Buffer
	end, err := p.Attach(t.Context(), &out, &errs)
	if err != nil || end.GetExitCode() != 0 || end.GetLostBytes() != 0 {
		t.Fatalf("%v, %v", end, err)
	}
	if out.String() != want[0] || errs.String() != want[1] {
		t.Fatalf("%d and %d bytes of output are not the %d that were written", out.Len(), errs.Len(), lines*width)
	}
	// From any byte, on each stream by itself, after the end.
	for _, at := range []int64{0, 1, 12_345, lines*width - 1, lines * width} {
		out.Reset()
		errs.Reset()
		if _, err := p.AttachFrom(t.Context(), &out, &errs, at, lines*width-at); err != nil {
			t.Fatal(err)
		}
		if out.String() != want[0][at:] || errs.String() != want[1][lines*width-at:] {
			t.Errorf("from byte %d: %d and %d bytes", at, out.Len(), errs.Len())
		}
	}
	again, err := s.Start(t.Context(), sirocco.Command{ID: "spew", Args: []string{"visitor", "spew", fmt.Sprint(lines)}})
	if err != nil {
		t.Fatal(err)
	}
	if x, err := again.Wait(t.Context(), 0); err != nil || x.GetEnd() == nil || x.GetStdoutBytes() != lines*width {
		t.Errorf("the same id again: %v, %v", x, err)
	}
}

// leaver leaves after so many bytes.
type leaver struct {
	after int
	leave func()
}

func (l *leaver) Write(p []byte) (int, error) {
	if l.after -= len(p); l.after < 0 {
		l.leave()
	}
	return len(p), nil
}

func TestBigInput(t *testing.T) {
	t.Parallel()
	s := create(t, nil)
	data := noise(20 << 20)
	r := runWith(t, s, sirocco.Command{Args: []string{"sha256sum"}, Stdin: bytes.NewReader(data)})
	if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(r.out, want) {
		t.Errorf("got %q %q, want %s", r.out, r.err, want)
	}
}

func TestAThousandExecs(t *testing.T) {
	t.Parallel()
	s := create(t, nil)
	const n, workers = 1000, 16
	numbers := make(chan int)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range numbers {
				var out bytes.Buffer
				end, err := s.Run(t.Context(), sirocco.Command{ID: fmt.Sprint("e", i), Args: []string{"echo", fmt.Sprint(i)}, Stdout: &out})
				if err != nil || end.GetExitCode() != 0 || out.String() != fmt.Sprintln(i) {
					t.Errorf("exec %d: %v, %v, %q", i, end, err, out.String())
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	wg.Wait()
	execs, err := s.Processes(t.Context())
	if err != nil || len(execs) != n {
		t.Fatalf("%d execs are listed, %v", len(execs), err)
	}
	var out bytes.Buffer
	if _, err := s.Process("e7").Attach(t.Context(), &out, nil); err != nil || out.String() != "7\n" {
		t.Errorf("the output of an old one: %q, %v", out.String(), err)
	}
	if left := sh(t, s, "ps | wc -l"); len(left) > 2 {
		t.Errorf("%s processes are left", left)
	}
}

// lockedBuffer may be read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
