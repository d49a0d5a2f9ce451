package up_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
	"github.com/spf13/pflag"
)

// freePorts returns ports that nobody listens on, the first of a run of n.
func freePorts(t *testing.T, n int) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		first := l.Addr().(*net.TCPAddr).Port
		l.Close()
		free := first+n < 65536
		for p := first; free && p < first+n; p++ {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
			if free = err == nil; free {
				l.Close()
			}
		}
		if free {
			return first
		}
	}
	t.Fatal("no free ports")
	return 0
}

// config is a platform of simulated nodes on ports of its own.
func config(t *testing.T, data string, args ...string) up.Config {
	t.Helper()
	port := freePorts(t, 8)
	var cfg up.Config
	fs := pflag.NewFlagSet("up", pflag.ContinueOnError)
	cfg.Flags(fs)
	err := fs.Parse(append([]string{
		"--runtime", "sim", "--data", data, "--nats-port", strconv.Itoa(port), "--listen", "127.0.0.1:" + strconv.Itoa(port+1),
		"--tunnel-port", strconv.Itoa(port + 2), "--node-port", strconv.Itoa(port + 3),
	}, args...))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// running is a platform that serves.
type running struct {
	up.Ready
	stop context.CancelFunc
	done chan error
	log  *bytes.Buffer
}

// start runs a platform and returns once it is ready.
func start(t *testing.T, cfg up.Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{stop: cancel, done: make(chan error, 1), log: &bytes.Buffer{}}
	ready := make(chan up.Ready, 1)
	cfg.Ready = func(r up.Ready) error { ready <- r; return nil }
	p, err := up.New(cfg, r.log)
	if err != nil {
		t.Fatal(err)
	}
	go func() { r.done <- p.Run(ctx) }()
	select {
	case r.Ready = <-ready:
	case err := <-r.done:
		t.Fatalf("it ended: %v\n%s", err, r.log)
	}
	return r
}

func (r *running) end(t *testing.T) {
	t.Helper()
	r.stop()
	if err := <-r.done; err != nil {
		t.Fatalf("it ended with %v\n%s", err, r.log)
	}
}

func (r *running) client(t *testing.T) *sirocco.Client {
	t.Helper()
	c, err := sirocco.New(sirocco.Config{API: r.API, Key: r.Key, CAFile: r.CA})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func create(t *testing.T, c *sirocco.Client) *sirocco.Sandbox {
	t.Helper()
	s, err := c.Create(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Record.GetState() != siroccov1.State_STATE_RUNNING {
		t.Fatalf("got %v", s.Record)
	}
	return s
}

func TestServesAndKeepsItsKey(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	cfg := config(t, data, "--nodes", "3")
	r := start(t, cfg)
	if r.Nodes != 3 || !strings.HasPrefix(r.Key, "sk_") || !strings.HasPrefix(r.Tunnels, "https://*.sandbox.localhost:") {
		t.Errorf("got %+v", r.Ready)
	}
	s := create(t, r.client(t))
	var out bytes.Buffer
	end, err := s.Run(t.Context(), sirocco.Command{Args: []string{"echo", "hello"}, Stdout: &out})
	if err != nil || end.GetExitCode() != 0 || out.String() != "hello\n" {
		t.Fatalf("got %v, %v, %q", end, err, out.String())
	}
	for _, file := range []string{"api-key", "keys/bus.json"} {
		if info, err := os.Stat(filepath.Join(data, file)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: want 0600, got %v, %v", file, info, err)
		}
	}

	// The stock client of the bus is a client, without credentials on this
	// machine.
	nc, err := nats.Connect(r.Bus)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	answer, err := nc.Request("sirocco.api.default.sandbox.create", []byte(`{"command":["echo","hi"]}`), 30*time.Second)
	if err != nil || !strings.Contains(string(answer.Data), `"sb-`) {
		t.Errorf("got %v, %v", answer, err)
	}
	if _, err := up.BusAccess(data); err != nil {
		t.Error(err)
	}

	// A second one on the same folder says who has it.
	second, err := up.New(config(t, data), &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "pid "+strconv.Itoa(os.Getpid())) {
		t.Errorf("got %v", err)
	}
	r.end(t)

	again := start(t, cfg)
	if again.Key != r.Key {
		t.Error("the second start made another key")
	}
	create(t, again.client(t))
	again.end(t)
}

func TestStopSandboxes(t *testing.T) {
	data := t.TempDir()
	r := start(t, config(t, data, "--stop-sandboxes"))
	s := create(t, r.client(t))
	r.end(t)
	r = start(t, config(t, data))
	sb, err := r.client(t).Get(t.Context(), s.ID)
	if err != nil || sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_USER {
		t.Errorf("got %v, %v", sb, err)
	}
	r.end(t)
}

func TestDown(t *testing.T) {
	data := t.TempDir()
	if _, err := up.Down(t.Context(), data); err == nil || !strings.Contains(err.Error(), "no `sirocco up` runs") {
		t.Errorf("got %v", err)
	}
	// Down sends the signal that a program's main turns into the end of its
	// context.
	terms := make(chan os.Signal, 1)
	signal.Notify(terms, syscall.SIGTERM)
	defer signal.Stop(terms)
	r := start(t, config(t, data))
	create(t, r.client(t))
	create(t, r.client(t))
	go func() {
		<-terms
		r.stop()
	}()
	said, err := up.Down(t.Context(), data)
	if err != nil || !strings.HasPrefix(said, "2 sandboxes ended") {
		t.Errorf("got %q, %v", said, err)
	}
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

func TestOneServiceThatCannotStartEndsAll(t *testing.T) {
	cfg := config(t, t.TempDir())
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p, err := up.New(cfg, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "api") {
		t.Errorf("got %v", err)
	}
}

func TestCheckComesFirst(t *testing.T) {
	cfg := config(t, t.TempDir())
	missing := errors.New("something is missing")
	cfg.Check = func() error { return missing }
	p, err := up.New(cfg, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context()); !errors.Is(err, missing) {
		t.Errorf("got %v", err)
	}
}

func TestWrongFlags(t *testing.T) {
	for _, c := range []struct{ args, says string }{
		{"--nodes -1", "--nodes"}, {"--nodes 5000", "--nodes"}, {"--runtime vm", "--runtime"}, {"--node-name a.b", "--node-name"}, {"--data=", "--data"},
		{"--listen 7070", "--listen"}, {"--nats-port 0", "--nats-port"}, {"--nodes 2 --node-port 65535", "--node-port"}, {"--tunnel-host here", "--tunnel-host"},
		{"--set max-live=5", "--set"}, {"--set web.max-live=5", "no service"}, {"--set api.no-such=5", "no flag"}, {"--set api.max-live=many", "--set"},
	} {
		cfg := config(t, t.TempDir(), strings.Fields(c.args)...)
		if _, err := up.New(cfg, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v", c.args, err)
		}
	}
	if _, err := up.New(config(t, t.TempDir(), "--set", "api.max-live=5"), &bytes.Buffer{}); err != nil {
		t.Error(err)
	}
}
