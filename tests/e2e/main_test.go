// Package e2e tests the platform as its users meet it: `sirocco up` in a process
// of its own with real sandboxes, driven through the SDK, plain HTTP, the stock
// client of the bus and the command line.
package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/types/known/durationpb"
)

// up is the platform that all tests of this package share.
var up *platform.Up

func TestMain(m *testing.M) {
	code := 1
	if err := start(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(code)
	}
	code = m.Run()
	if code != 0 {
		keepLog()
	}
	if err := up.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	registry.close()
	os.Exit(code)
}

func start() (err error) {
	if err := registry.open(); err != nil {
		return err
	}
	if err := registry.pushVisitor(); err != nil {
		return err
	}
	up, err = platform.StartUp("e2e", "--set", "node-agent.private-registries="+registry.host(), "--set", "node-agent.eviction-notice=1s",
		"--set", "scheduler.patience=1s", "--set", "tunnel-relay.start-wait=4s")
	return err
}

// keepLog keeps the platform's log where SIROCCO_TEST_LOG says.
func keepLog() { keepLogOf(up, "") }

// keepLogOf is keepLog for another platform; more is added to the name.
func keepLogOf(up *platform.Up, more string) {
	path := os.Getenv("SIROCCO_TEST_LOG")
	if path == "" {
		return
	}
	path += more
	if raw, err := os.ReadFile(up.Log()); err == nil {
		_ = os.WriteFile(path, raw, 0o600)
	}
}

// client returns a client of the tenant "default".
func client(t testing.TB) *sirocco.Client {
	t.Helper()
	return clientOf(t, "")
}

func clientOf(t testing.TB, key string) *sirocco.Client {
	t.Helper()
	c, err := up.Client(key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// create makes a sandbox that runs; the test's end ends it.
func create(t testing.TB, req *siroccov1.CreateSandboxRequest) *sirocco.Sandbox {
	t.Helper()
	s := accept(t, req)
	if s.Record.GetState() != siroccov1.State_STATE_RUNNING {
		t.Fatalf("it does not run: %v, %v", s.Record.GetState(), s.Record.GetEnd())
	}
	return s
}

// accept is create for a sandbox that may also have failed.
func accept(t testing.TB, req *siroccov1.CreateSandboxRequest) *sirocco.Sandbox {
	t.Helper()
	s, err := client(t).Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := s.TerminateWith(ctx, &siroccov1.TerminateSandboxRequest{NoWait: true}); err != nil && sirocco.CodeOf(err) != sirocco.NotFound {
			t.Errorf("end %s: %v", s.ID, err)
		}
	})
	return s
}

// result is what a command left.
type result struct {
	*siroccov1.ExecEnd
	out, err string
}

// run runs a command in a sandbox.
func run(t testing.TB, s *sirocco.Sandbox, args ...string) result {
	t.Helper()
	return runWith(t, s, sirocco.Command{Args: args})
}

func runWith(t testing.TB, s *sirocco.Sandbox, cmd sirocco.Command) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	end, err := s.Run(t.Context(), cmd)
	if err != nil {
		t.Fatalf("run %q: %v", cmd.Args, err)
	}
	return result{end, out.String(), errs.String()}
}

// sh runs a line of shell that must succeed, and returns what it printed.
func sh(t testing.TB, s *sirocco.Sandbox, line string) string {
	t.Helper()
	r := run(t, s, "sh", "-c", line)
	if r.GetExitCode() != 0 {
		t.Fatalf("%s: exit code %d %s: %s%s", line, r.GetExitCode(), r.GetSignal(), r.out, r.err)
	}
	return strings.TrimSpace(r.out)
}

// awaitEnd waits until a sandbox has ended and returns why.
func awaitEnd(t testing.TB, s *sirocco.Sandbox) *siroccov1.End {
	t.Helper()
	return await(t, s, "its end", func(sb *siroccov1.Sandbox) bool { return sb.GetEnd() != nil }).GetEnd()
}

// await waits until a record is as wanted.
func await(t testing.TB, s *sirocco.Sandbox, what string, done func(*siroccov1.Sandbox) bool) *siroccov1.Sandbox {
	t.Helper()
	c := client(t)
	var sb *siroccov1.Sandbox
	platform.Eventually(t, 30*time.Second, func() string {
		var err error
		if sb, err = c.Get(t.Context(), s.ID); err != nil {
			return err.Error()
		}
		if !done(sb) {
			return fmt.Sprintf("%s: waiting for %s: %v %v", s.ID, what, sb.GetState(), sb.GetEnd())
		}
		return ""
	})
	return sb
}

// wantCode checks the code of an error.
func wantCode(t testing.TB, what string, err error, want ...sirocco.Code) {
	t.Helper()
	for _, w := range want {
		if sirocco.CodeOf(err) == w {
			return
		}
	}
	t.Errorf("%s: want %v, got %v", what, want, err)
}

func seconds(n float64) *durationpb.Duration {
	return durationpb.New(time.Duration(n * float64(time.Second)))
}

// eventually waits until get returns want.
func eventually(t testing.TB, get func() string, want string) {
	t.Helper()
	platform.Eventually(t, 15*time.Second, func() string {
		if got := get(); got != want {
			return fmt.Sprintf("got %q, want %q", got, want)
		}
		return ""
	})
}

// httpClient is a client of tunnels that trusts the platform's authority and
// finds every name at its relay.
func httpClient(t testing.TB) *http.Client {
	t.Helper()
	return httpClientOf(t, up.CA)
}

// httpClientOf is httpClient for the platform whose authority's certificate is in a file.
func httpClientOf(t testing.TB, ca string) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: trustIn(t, ca), DialContext: dialRelay, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 60 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// dialRelay is what a resolver does that knows names below localhost.
func dialRelay(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	return d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
}

func trust(t testing.TB) *tls.Config {
	t.Helper()
	return trustIn(t, up.CA)
}

func trustIn(t testing.TB, ca string) *tls.Config {
	t.Helper()
	raw, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(raw) {
		t.Fatal("no certificate in " + ca)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}
