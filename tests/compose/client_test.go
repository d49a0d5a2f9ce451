//go:build compose

package compose

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/types/known/durationpb"
)

// cut takes the containers of services off a network; restore, which the test's
// end calls too, puts them back.
func cut(t *testing.T, network string, services ...string) (restore func()) {
	t.Helper()
	aliases := map[string][]string{}
	for _, service := range services {
		id := container(t, service)
		var have map[string]struct{ Aliases []string }
		if err := json.Unmarshal([]byte(must(t, "inspect", "--format", "{{json .NetworkSettings.Networks}}", id)), &have); err != nil {
			t.Fatal(err)
		}
		if on, ok := have[network]; ok {
			aliases[id] = on.Aliases
		}
	}
	if len(aliases) == 0 {
		t.Fatalf("nothing of %v is on %s", services, network)
	}
	restore = sync.OnceFunc(func() {
		for id, names := range aliases {
			args := []string{"network", "connect"}
			for _, name := range names {
				args = append(args, "--alias", name)
			}
			if _, err := docker(append(args, network, id)...); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(restore)
	for id := range aliases {
		must(t, "network", "disconnect", network, id)
	}
	return restore
}

// createOn is mustCreate on one of the two nodes.
func (r *region) createOn(t testing.TB, node string) *sirocco.Sandbox {
	t.Helper()
	other := strings.TrimSuffix(node, "-a") + "-b"
	if strings.HasSuffix(node, "-b") {
		other = strings.TrimSuffix(node, "-b") + "-a"
	}
	r.cli(t.Context(), t, "node", "cordon", other)
	defer r.cli(t.Context(), t, "node", "cordon", "--lift", other)
	var sb *sirocco.Sandbox
	// A scheduler hears of the cordon a moment later.
	platform.Eventually(t, limit, func() string {
		sb = mustCreate(t, r)
		if got := sb.Record.GetPlacement().GetNode(); got != node {
			return "it runs on " + got
		}
		return ""
	})
	return sb
}

// mustCreate makes a web server that runs in the region; the test's end ends it.
func mustCreate(t testing.TB, r *region) *sirocco.Sandbox {
	t.Helper()
	sb, err := r.client(t).Create(t.Context(), &siroccov1.CreateSandboxRequest{
		Regions: []string{r.name},
		Command: []string{"sh", "-c", serve}, Ports: []*siroccov1.Port{{Port: 8000}}, Readiness: &siroccov1.Probe{TcpPort: 8000},
		MaxLifetime: durationpb.New(15 * time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	if sb.Record.GetState() != siroccov1.State_STATE_RUNNING {
		t.Fatalf("it does not run: %v, %v", sb.Record.GetState(), sb.Record.GetEnd())
	}
	t.Cleanup(func() { end(t, sb) })
	return sb
}

func end(t testing.TB, sb *sirocco.Sandbox) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if _, err := sb.TerminateWith(ctx, &siroccov1.TerminateSandboxRequest{NoWait: true}); err != nil && sirocco.CodeOf(err) != sirocco.NotFound {
		t.Errorf("end %s: %v", sb.ID, err)
	}
}

// sh runs a line of shell that must succeed; where the platform is away it is
// tried again for a while.
func sh(t testing.TB, sb *sirocco.Sandbox, line string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	out, err := shell(ctx, sb, line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func shell(ctx context.Context, sb *sirocco.Sandbox, line string) (string, error) {
	var out strings.Builder
	end, err := sb.Run(ctx, sirocco.Command{Args: []string{"sh", "-c", line}, Stdout: &out, Stderr: &out})
	if err != nil {
		return "", fmt.Errorf("run %q in %s: %w", line, sb.ID, err)
	}
	if end.GetExitCode() != 0 {
		return "", fmt.Errorf("run %q in %s: exit code %d: %s", line, sb.ID, end.GetExitCode(), out.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// page fetches the page through the tunnel, as a browser on this machine does.
// It is tried again while nothing answers, and returns what came instead.
func (r *region) page(t testing.TB, sb *sirocco.Sandbox) string {
	t.Helper()
	c := r.browser(t)
	const want = "it works"
	got := ""
	_ = platform.Poll(limit, func() string {
		var err error
		if got, err = fetch(t.Context(), c, sb.Record.GetTunnels()[0].GetUrl()+"page"); err != nil {
			got = err.Error()
		}
		if got != want {
			return got
		}
		return ""
	})
	return got
}

// browser is a client of the region's tunnels that makes a connection for each request.
func (r *region) browser(t testing.TB) *http.Client {
	t.Helper()
	pem, err := os.ReadFile(r.ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", r.relay)
		},
		DisableKeepAlives: true,
	}}
}

// fetch makes one request; an answer that is not 200 is an error.
func fetch(ctx context.Context, c *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s %q", resp.Status, body)
	}
	return strings.TrimSpace(string(body)), err
}

// healthy waits until the engine calls a service's container healthy.
func healthy(t testing.TB, service string) {
	t.Helper()
	id := container(t, service)
	platform.Eventually(t, limit, func() string {
		if got := must(t, "inspect", "--format", "{{.State.Health.Status}}", id); got != "healthy" {
			return service + " is " + got
		}
		return ""
	})
}

// creator makes sandboxes one after another on three lines, each of which must
// run a command.
type creator struct {
	cancel context.CancelFunc
	lines  sync.WaitGroup

	mu      sync.Mutex
	count   int
	slowest time.Duration
	failed  []error
	more    chan struct{} // closed and replaced with each
}

func (r *region) create(t testing.TB) *creator {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cr := &creator{cancel: cancel, more: make(chan struct{})}
	t.Cleanup(cancel)
	for range 3 {
		c := r.client(t)
		cr.lines.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				err := one(context.WithoutCancel(ctx), c, r.name)
				cr.done(time.Since(began), err)
			}
		})
	}
	return cr
}

func one(ctx context.Context, c *sirocco.Client, region string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	sb, err := c.Create(ctx, &siroccov1.CreateSandboxRequest{Regions: []string{region}})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if sb.Record.GetState() != siroccov1.State_STATE_RUNNING {
		return fmt.Errorf("%s does not run: %v, %v", sb.ID, sb.Record.GetState(), sb.Record.GetEnd())
	}
	if said, err := shell(ctx, sb, "echo ready"); err != nil || said != "ready" {
		return fmt.Errorf("%q, %w", said, err)
	}
	_, err = sb.TerminateWith(ctx, &siroccov1.TerminateSandboxRequest{NoWait: true})
	return err
}

func (cr *creator) done(took time.Duration, err error) {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	if err != nil {
		cr.failed = append(cr.failed, err)
	} else {
		cr.count++
		cr.slowest = max(cr.slowest, took)
	}
	close(cr.more)
	cr.more = make(chan struct{})
}

// await waits for so many more on each line, on average.
func (cr *creator) await(t testing.TB, n int) {
	t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	cr.mu.Lock()
	until := cr.count + 3*n
	cr.mu.Unlock()
	for {
		cr.mu.Lock()
		count, more, failed := cr.count, cr.more, slices.Clone(cr.failed)
		cr.mu.Unlock()
		if len(failed) > 0 {
			t.Fatal(failed[0])
		}
		if count >= until {
			return
		}
		select {
		case <-more:
		case <-timer.C:
			t.Fatalf("%d sandboxes ran a command, %d more were wanted within %v", count, until-count, limit)
		}
	}
}

// stop waits for those that are under way and returns how many there were.
func (cr *creator) stop(t testing.TB) int {
	t.Helper()
	cr.cancel()
	cr.lines.Wait()
	for _, err := range cr.failed {
		t.Error(err)
	}
	return cr.count
}
