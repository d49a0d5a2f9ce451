//go:build compose

package compose

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
			r.cli(ctx, t, "run", "--detach", "--region", r.name, "--name", "web", "--port", "8000", "--ready-tcp", "8000", "--timeout", "10m", "--", "sh", "-c", serve)
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
	// Its name is known in both networks: without its region's it would be reached by
	// the other.
	apart, alone := cut(t, project+"_regions", "node-us-b"), cut(t, project+"_us", "node-us-b")
	creating := r.create(t)
	creating.await(t, 5)
	alone()
	apart()
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
