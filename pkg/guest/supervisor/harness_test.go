package supervisor

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

var testSecret = []byte("a secret of the tests")

// world is a supervisor in this process and a client of it.
type world struct {
	*guest.Client
	s    *Supervisor
	t    testing.TB
	addr string
	ctx  context.Context
	dir  string // for the test's files
}

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test needs root: it starts processes as other users")
	}
	etc := filepath.Join(t.TempDir(), "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home/nobody:/bin/false\nann:x:1234:1300::/tmp:/bin/sh\nbroken\n",
		"group":  "root:x:0:\nstaff:x:1400:ann,root\nwheel:x:1500:ann\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	run, stop := context.WithCancel(context.Background())
	w := &world{t: t, addr: l.Addr().String(), ctx: ctx, dir: t.TempDir()}
	w.s = New(Config{Secret: testSecret, Dir: filepath.Join(t.TempDir(), "run"), Etc: etc})
	served := make(chan error, 1)
	go func() { served <- w.s.Run(run, l) }()
	t.Cleanup(func() {
		if w.Client != nil {
			_ = w.Close()
		}
		w.s.shutdown(0)
		stop()
		if err := <-served; err != nil {
			t.Errorf("run: %v", err)
		}
		cancel()
	})
	w.Client = w.dial()
	return w
}

func (w *world) dial() *guest.Client {
	w.t.Helper()
	c, err := guest.Dial(w.ctx, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", w.addr)
	}, testSecret)
	if err != nil {
		w.t.Fatalf("dial: %v", err)
	}
	return c
}

func (w *world) start(r guest.StartRequest) guest.Exec {
	w.t.Helper()
	x, err := w.Start(w.ctx, r)
	if err != nil {
		w.t.Fatalf("start %s: %v", r.ID, err)
	}
	return x
}

func (w *world) sh(id, script string) guest.Exec {
	w.t.Helper()
	return w.start(guest.StartRequest{ID: id, Command: []string{"sh", "-c", script}})
}

func (w *world) end(id string) *guest.End {
	w.t.Helper()
	x, err := w.Wait(w.ctx, id, time.Minute)
	if err != nil || x.End == nil {
		w.t.Fatalf("wait %s: %+v, %v", id, x, err)
	}
	return x.End
}

func (w *world) output(id string) (string, string) {
	w.t.Helper()
	r, err := w.Attach(w.ctx, id, 0, 0, true)
	if err != nil {
		w.t.Fatalf("attach %s: %v", id, err)
	}
	out, errOut, _, err := guest.Collect(r, 64<<20)
	if err != nil {
		w.t.Fatalf("output of %s: %v", id, err)
	}
	return string(out), string(errOut)
}

// run starts a script, waits for its end and returns its standard output.
func (w *world) run(id, script string) string {
	w.t.Helper()
	w.sh(id, script)
	out, errOut := w.output(id)
	if end := w.end(id); end.Code != 0 {
		w.t.Fatalf("%s: exit %d: %s", id, end.Code, errOut)
	}
	return out
}

func want(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error is %v, want %v", err, target)
	}
}

// until waits for a condition that another goroutine or process brings about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
		<-tick.C
	}
}

// lines reads one stream of an attached process line by line.
type lines struct {
	t    testing.TB
	r    *guest.OutputReader
	rest []byte
}

func (l *lines) next() string {
	l.t.Helper()
	for {
		for i, b := range l.rest {
			if b == '\n' {
				line := string(l.rest[:i])
				l.rest = l.rest[i+1:]
				return line
			}
		}
		o, err := l.r.Next()
		if err == io.EOF || o.End != nil {
			return string(l.rest) + "<end>"
		}
		if err != nil {
			l.t.Fatalf("next: %v", err)
		}
		l.rest = append(l.rest, o.Data...)
	}
}

func (w *world) follow(id string) *lines {
	w.t.Helper()
	r, err := w.Attach(w.ctx, id, 0, guest.Skip, true)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = r.Close() })
	return &lines{t: w.t, r: r}
}
