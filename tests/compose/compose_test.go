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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/types/known/durationpb"
)

// serve is a web server with one page.
const serve = "mkdir /www && echo it works > /www/page && exec httpd -q -p 8000 -h /www"

// A person's way through each region, with the command line.
func TestEndToEnd(t *testing.T) {
	for _, r := range stack.regions {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			if got := r.cli(ctx, t, "run", "--", "sh", "-c", "echo hello from $(uname -n)"); !strings.HasPrefix(got, "hello from sb-") {
				t.Errorf("run: %q", got)
			}
			r.cli(ctx, t, "run", "--detach", "--name", "web", "--port", "8000", "--ready-tcp", "8000", "--timeout", "10m", "--", "sh", "-c", serve)
			if got := r.cli(ctx, t, "exec", "web", "--", "cat", "/www/page"); got != "it works" {
				t.Errorf("exec: %q", got)
			}
			file := filepath.Join(t.TempDir(), "notes.txt")
			if err := os.WriteFile(file, []byte(strings.Repeat("a line\n", 20_000)), 0o600); err != nil {
				t.Fatal(err)
			}
			r.cli(ctx, t, "cp", file, "web:/tmp/notes.txt")
			if got := r.cli(ctx, t, "cp", "web:/tmp/notes.txt", "-"); got != strings.TrimSpace(strings.Repeat("a line\n", 20_000)) {
				t.Errorf("cp brought %d bytes back", len(got))
			}
			sb, err := r.client(t).Open(ctx, "web")
			if err != nil {
				t.Fatal(err)
			}
			if got := r.page(t, sb); got != "it works" {
				t.Errorf("tunnel: %s", got)
			}
			if node := sb.Record.GetPlacement().GetNode(); !strings.HasPrefix(node, nodes+"-"+r.name+"-") {
				t.Errorf("it runs on %s", node)
			}
			r.cli(ctx, t, "rm", "web")
			var record struct {
				State string
				End   struct{ Cause string }
			}
			if err := json.Unmarshal([]byte(r.cli(ctx, t, "--json", "get", sb.ID)), &record); err != nil || !strings.HasSuffix(strings.ToLower(record.State), "stopped") || !strings.HasSuffix(strings.ToLower(record.End.Cause), "user") {
				t.Errorf("the record says %+v, %v", record, err)
			}
		})
	}
}

// Whatever container is killed, creates that are under way end well, and so do
// those that come meanwhile.
func TestKilledUnderCreates(t *testing.T) {
	r := stack.regions["eu"]
	for _, service := range []string{"scheduler-eu-1", "nats-eu-1", "nats-eu-2", "nats-eu-3", "node-agent-eu-b", "api-eu", "relay-eu"} {
		t.Run(service, func(t *testing.T) {
			id := container(t, service)
			creating := r.create(t)
			creating.await(t, 2)
			must(t, "kill", id)
			// A scheduler, a server of three and a node of two are not missed.
			if service != "api-eu" && service != "relay-eu" {
				creating.await(t, 3)
			}
			must(t, "start", id)
			healthy(t, service)
			creating.await(t, 2)
			t.Logf("%d sandboxes ran a command, the slowest after %v", creating.stop(t), creating.slowest.Round(time.Millisecond))
		})
	}
}

// Sandboxes go on while their node's agent is dead: the same processes, the same
// files, the same network.
func TestSandboxesOutliveTheAgent(t *testing.T) {
	r := stack.regions["eu"]
	const node = nodes + "-eu-a"
	kept := []*sirocco.Sandbox{r.createOn(t, node), r.createOn(t, node)}
	before := map[string]string{}
	for _, sb := range kept {
		before[sb.ID] = sh(t, sb, "echo $RANDOM$RANDOM > /tmp/mark; cat /tmp/mark; ps | grep -v ps | head -n 4")
	}
	agent := container(t, "node-agent-eu-a")
	must(t, "kill", agent)
	began := time.Now()
	must(t, "start", agent)
	for _, sb := range kept {
		if now := sh(t, sb, "cat /tmp/mark; ps | grep -v ps | head -n 4"); now != before[sb.ID] {
			t.Errorf("%s has %q, had %q", sb.ID, now, before[sb.ID])
		}
		if got := r.page(t, sb); got != "it works" {
			t.Errorf("%s answers %s", sb.ID, got)
		}
	}
	t.Logf("%d sandboxes answer again %v after the agent's start", len(kept), time.Since(began).Round(time.Millisecond))
	if log := must(t, "logs", "--since", began.Format(time.RFC3339), agent); strings.Contains(log, "network slot of a sandbox is gone") {
		t.Errorf("sandboxes lost their network: %s", log)
	}
	healthy(t, "node-agent-eu-a")
}

// Without the network between the regions each goes on, at once.
func TestRegionsApart(t *testing.T) {
	kept := map[string]*sirocco.Sandbox{}
	for name, r := range stack.regions {
		kept[name] = mustCreate(t, r)
	}
	restore := cut(t, project+"_regions", services(t, "us")...)
	works := func(when string) {
		for name, r := range stack.regions {
			began := time.Now()
			mustCreate(t, r)
			if got := r.page(t, kept[name]); got != "it works" {
				t.Errorf("%s, %s: %s", when, name, got)
			}
			sh(t, kept[name], "cat /www/page")
			t.Logf("%s: %s created, ran and served in %v", when, name, time.Since(began).Round(time.Millisecond))
		}
	}
	works("apart")
	restore()
	works("together again")
}

// A sandbox of one region is made, found, used and ended through the other, with the
// other's key.
func TestThroughTheOther(t *testing.T) {
	eu := stack.regions["eu"].client(t)
	sb, err := eu.Create(t.Context(), &siroccov1.CreateSandboxRequest{Regions: []string{"us"}, MaxLifetime: durationpb.New(5 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if got := sb.Record.GetPlacement().GetRegion(); got != "us" {
		t.Errorf("it is in %q", got)
	}
	if got, err := eu.Get(t.Context(), sb.ID); err != nil || got.GetState() != siroccov1.State_STATE_RUNNING {
		t.Errorf("found through the other region: %v, %v", got.GetState(), err)
	}
	if _, err := sb.Terminate(t.Context(), ""); err != nil {
		t.Error(err)
	}
	platform.Eventually(t, time.Minute, func() string {
		for name, r := range stack.regions {
			resp, err := r.client(t).Regions().List(t.Context(), connect.NewRequest(&siroccov1.ListRegionsRequest{}))
			if err != nil {
				return err.Error()
			}
			for _, one := range resp.Msg.GetRegions() {
				if !one.GetAlive() || one.GetWeight() == 0 {
					return fmt.Sprintf("%s seen from %s: %v", one.GetName(), name, one.GetReasons())
				}
			}
		}
		return ""
	})
}

// A node that its region can't reach gets no sandboxes and loses none.
func TestNodeCutOff(t *testing.T) {
	r := stack.regions["us"]
	const node = nodes + "-us-b"
	kept := r.createOn(t, node)
	mark := sh(t, kept, "echo $RANDOM$RANDOM > /tmp/mark; cat /tmp/mark")
	restore := cut(t, project+"_us", "node-us-b")
	creating := r.create(t)
	creating.await(t, 5)
	restore()
	began := time.Now()
	if now := sh(t, kept, "cat /tmp/mark"); now != mark {
		t.Errorf("it holds %q, held %q", now, mark)
	}
	if got := r.page(t, kept); got != "it works" {
		t.Errorf("it answers %s", got)
	}
	t.Logf("the sandbox answers again %v after the cut", time.Since(began).Round(time.Millisecond))
	platform.Eventually(t, limit, func() string {
		if sb := mustCreate(t, r); sb.Record.GetPlacement().GetNode() != node {
			return node + " gets no sandboxes"
		}
		return ""
	})
	t.Logf("%d sandboxes ran a command, the slowest after %v", creating.stop(t), creating.slowest.Round(time.Millisecond))
}

// A region whose containers are all killed at once is not noticed in the other;
// when it is back, its sandboxes are found again.
func TestRegionDies(t *testing.T) {
	eu, us := stack.regions["eu"], stack.regions["us"]
	kept := mustCreate(t, eu)
	mark := sh(t, kept, "echo $RANDOM$RANDOM > /tmp/mark; cat /tmp/mark")
	var ids []string
	for _, service := range services(t, "eu") {
		// What holds a node's network is the machine, which lives on.
		if !strings.HasPrefix(service, "node-eu-") {
			ids = append(ids, container(t, service))
		}
	}
	must(t, append([]string{"kill"}, ids...)...)
	began := time.Now()
	mustCreate(t, us)
	t.Logf("us created %v after eu had died", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	must(t, append([]string{"start"}, ids...)...)
	platform.Eventually(t, limit, func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := eu.client(t).Get(ctx, kept.ID); err != nil {
			return err.Error()
		}
		return ""
	})
	if now := sh(t, kept, "cat /tmp/mark"); now != mark {
		t.Errorf("it holds %q, held %q", now, mark)
	}
	mustCreate(t, eu)
	t.Logf("eu has its sandbox again and creates %v after its start", time.Since(began).Round(time.Millisecond))
}

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
	pem, err := os.ReadFile(r.ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", r.relay)
		},
		DisableKeepAlives: true,
	}
	c := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	const want = "it works"
	got := ""
	_ = platform.Poll(limit, func() string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, sb.Record.GetTunnels()[0].GetUrl()+"page", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			got = err.Error()
			return got
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		got = strings.TrimSpace(string(body))
		if err != nil || got != want {
			got = fmt.Sprintf("%s %q %v", resp.Status, got, err)
			return got
		}
		return ""
	})
	return got
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
