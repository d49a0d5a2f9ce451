package program_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/natsserver"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/spf13/pflag"
	"go.opentelemetry.io/otel/trace"
)

type runner func(context.Context) error

func (r runner) Run(ctx context.Context) error { return r(ctx) }

// execute runs a service that calls work with what it was given.
func execute(t *testing.T, env map[string]string, work func(context.Context, program.Env) error, args ...string) (code int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	var size int
	code = program.Execute(t.Context(), program.Service{
		Name: "thing", About: "does things",
		Flags: func(fs *pflag.FlagSet) { fs.IntVar(&size, "thing-size", 5, "`size` of the thing") },
		New: func(env program.Env) (program.Runner, error) {
			if size != 7 {
				return nil, errors.New("the size did not arrive")
			}
			return runner(func(ctx context.Context) error { return work(ctx, env) }), nil
		},
	}, args, func(name string) string { return env[name] }, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func TestRunsWithItsSurroundings(t *testing.T) {
	server, err := natsserver.Start(t.Context(), natsserver.Config{Dir: t.TempDir(), Port: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	metrics := l.Addr().String()
	l.Close()
	keys := filepath.Join(t.TempDir(), "keys")
	env := map[string]string{"SIROCCO_THING_SIZE": "7", "SIROCCO_REGION": "eu", "SIROCCO_INSTANCE": "from-env", "SIROCCO_METRICS_LISTEN": metrics}
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + metrics + path) //nolint:noctx // a listener of this test
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer resp.Body.Close()
		raw, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(raw)
	}
	code, _, errs := execute(t, env, func(ctx context.Context, env program.Env) error {
		if env.Region != "eu" || env.Instance != "flag-wins" || env.Front.Domain != "sandbox.localhost" || env.Front.TCPFirst != 20000 {
			t.Errorf("got %+v", env)
		}
		if _, err := env.JS.AccountInfo(ctx); err != nil {
			t.Error(err)
		}
		for _, path := range []string{"/healthz", "/readyz"} {
			if status, _ := get(path); status != 200 {
				t.Errorf("%s: %d", path, status)
			}
		}
		if status, text := get("/metrics"); status != 200 || !strings.Contains(text, "go_goroutine_count") {
			t.Errorf("/metrics: %d", status)
		}
		// Whoever restarts what is not healthy must not do so because the bus is
		// away: running sandboxes are served without it.
		env.NC.Close()
		if status, _ := get("/healthz"); status != 200 {
			t.Errorf("/healthz with the bus away: %d", status)
		}
		if status, _ := get("/readyz"); status != 503 {
			t.Errorf("/readyz with the bus away: %d", status)
		}
		env.Log.InfoContext(program.WithSandbox(ctx, "acme", "sb-1"), "at work")
		return errors.New("broken")
	}, "--nats-url", server.URL(), "--keys", keys, "--instance", "flag-wins")
	if code != 1 {
		t.Errorf("an error of Run must exit with 1, got %d\n%s", code, errs)
	}
	found := false
	for line := range strings.Lines(errs) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatalf("%q is no JSON", line)
		}
		if record["service"] != "thing" || record["region"] != "eu" || record["instance"] != "flag-wins" {
			t.Errorf("got %v", record)
		}
		found = found || record["msg"] == "at work" && record["tenant"] == "acme" && record["sandbox"] == "sb-1"
	}
	if !found {
		t.Errorf("the line about the sandbox is missing:\n%s", errs)
	}
}

func TestRefusesWrongFlags(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, says string }{
		{"--region a.b", "--region"},
		{"--instance x/y", "--instance"},
		{"--nats-url nowhere", "--nats-url"},
		{"--nats-password a --nats-password-file b", "exclude each other"},
		{"--nats-cert a", "belong together"},
		{"--tcp-ports 9", "--tcp-ports"},
		{"--tcp-ports 9-8", "--tcp-ports"},
		{"--tcp-share 0", "--tcp-share"},
		{"--tcp-share 101", "--tcp-share"},
		{"--tcp-ports 1-70000", "--tcp-ports"},
		{"--domain *.x", "--domain"},
		{"--tunnel-port 0", "--tunnel-port"},
		{"--metrics-listen 9090", "--metrics-listen"},
		{"--log-level loud", "--log-level"},
		{"--log-format xml", "--log-format"},
		{"--keys=", "--keys"},
		{"extra", "no arguments"},
		{"--unknown", "unknown flag"},
	} {
		code, _, errs := execute(t, map[string]string{"SIROCCO_THING_SIZE": "7"}, nil, strings.Fields(c.args)...)
		if code != 2 || !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: got %d, %q", c.args, code, errs)
		}
	}
	code, _, errs := execute(t, map[string]string{"SIROCCO_TUNNEL_PORT": "many"}, nil)
	if code != 2 || !strings.Contains(errs, "SIROCCO_TUNNEL_PORT") {
		t.Errorf("got %d, %q", code, errs)
	}
}

func TestHelpNamesEveryVariable(t *testing.T) {
	code, out, _ := execute(t, nil, nil, "--help")
	if code != 0 {
		t.Fatalf("got %d", code)
	}
	var s program.Settings
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	s.Flags(fs)
	for _, name := range append(program.FlagNames(fs), "thing-size") {
		if !strings.Contains(out, "--"+name) || !strings.Contains(strings.Join(strings.Fields(out), ""), program.EnvName(name)) {
			t.Errorf("--help does not document --%s with %s", name, program.EnvName(name))
		}
	}
	if !strings.Contains(out, program.OTLPEnv) {
		t.Errorf("--help does not name %s", program.OTLPEnv)
	}
	if code, out, _ := execute(t, nil, nil, "--version"); code != 0 || out != "sirocco thing unversioned\n" {
		t.Errorf("got %d, %q", code, out)
	}
}

func TestOpenTelemetrysOwnVariable(t *testing.T) {
	for want, env := range map[string]map[string]string{
		"http://a": {program.OTLPEnv: "http://a"},
		"http://b": {program.OTLPEnv: "http://a", "SIROCCO_OTLP_ENDPOINT": "http://b"},
	} {
		var s program.Settings
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		s.Flags(fs)
		if err := program.Parse(fs, nil, func(n string) string { return env[n] }); err != nil || s.OTLPEndpoint != want {
			t.Errorf("got %q, %v", s.OTLPEndpoint, err)
		}
	}
}

func TestEndsQuietlyWhileItWaitsForTheBus(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	code := program.Execute(ctx, program.Service{Name: "thing"}, []string{"--nats-url", "nats://" + l.Addr().String(), "--keys", t.TempDir()},
		func(string) string { return "" }, io.Discard, io.Discard)
	if code != 0 {
		t.Errorf("a Ctrl-C is no failure, got %d", code)
	}
}

func TestLogCarriesTheTrace(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(program.ContextHandler(slog.NewTextHandler(&out, nil))).With("a", 1).WithGroup("g")
	id, err := trace.TraceIDFromHex("0af7651916cd43dd8448eb211c80319c")
	if err != nil {
		t.Fatal(err)
	}
	ctx := trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: trace.SpanID{1}}))
	log.InfoContext(ctx, "x")
	if !strings.Contains(out.String(), "trace_id=0af7651916cd43dd8448eb211c80319c") {
		t.Errorf("got %s", out.String())
	}
}
