// Package regions tests several regions as their users meet them: `sirocco up
// --regions`, a process with a bus of its own for each, simulated sandboxes, and regions
// that are killed, or hang.
package regions

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// world is the platform that all tests of this package share; they change its regions,
// and so run one after the other.
var world *platform.Regions

const (
	eu, us = 0, 1
	// deadAfter is short, so that a death is seen soon.
	deadAfter = "2s"
)

func TestMain(m *testing.M) {
	var err error
	world, err = platform.StartRegions([]string{"eu", "us"}, "--nodes", "2", "--set", "scheduler.region-dead-after="+deadAfter, "--set", "scheduler.weight-tau-in=2s", "--set", "scheduler.weight-dwell-out=3s", "--set", "api.region-lost-after=4s")
	if err != nil {
		fmt.Fprintln(os.Stderr, "regions:", err)
		os.Exit(1)
	}
	code := m.Run()
	if path := os.Getenv("SIROCCO_TEST_LOG"); code != 0 && path != "" {
		if text, err := os.ReadFile(world.Log()); err == nil {
			_ = os.WriteFile(path, text, 0o600)
		}
	}
	if err := world.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "regions:", err)
		code = 1
	}
	os.Exit(code)
}

func client(t *testing.T, i int, key string) *sirocco.Client {
	t.Helper()
	c, err := world.Client(i, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// create makes a sandbox through a region and has it ended after the test.
func create(t *testing.T, c *sirocco.Client, req *siroccov1.CreateSandboxRequest) *siroccov1.Sandbox {
	t.Helper()
	sb, err := c.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if _, err := sb.Terminate(ctx, ""); err != nil && sirocco.CodeOf(err) != sirocco.NotFound {
			t.Error(err)
		}
	})
	record, err := c.Get(t.Context(), sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// regionsOf returns how a region sees all.
func regionsOf(t *testing.T, c *sirocco.Client) map[string]*siroccov1.Region {
	t.Helper()
	resp, err := c.Regions().List(t.Context(), connect.NewRequest(&siroccov1.ListRegionsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*siroccov1.Region{}
	for _, r := range resp.Msg.GetRegions() {
		all[r.GetName()] = r
	}
	return all
}

// bothServe waits until each region sees both alive and sends something to each.
func bothServe(t *testing.T) {
	t.Helper()
	for i := range world.Ready {
		c := client(t, i, "")
		platform.Eventually(t, 3*time.Minute, func() string { // a level that fell takes its time to rise
			resp, err := c.Regions().List(t.Context(), connect.NewRequest(&siroccov1.ListRegionsRequest{}))
			if err != nil {
				return err.Error()
			}
			if len(resp.Msg.GetRegions()) < 2 {
				return "the other region is not known yet"
			}
			for _, r := range resp.Msg.GetRegions() {
				if !r.GetAlive() || r.GetWeight() < 0.2 {
					return fmt.Sprintf("%s seen from %s: alive %v, weight %.2f, %v", r.GetName(), world.Ready[i].Region, r.GetAlive(), r.GetWeight(), r.GetReasons())
				}
			}
			return ""
		})
	}
}

// TestElsewhere: a sandbox of another region is made, found, changed, listed and ended
// through this one, and the data services of its own region take the token.
func TestElsewhere(t *testing.T) {
	bothServe(t)
	here := client(t, eu, "")
	req := &siroccov1.CreateSandboxRequest{Regions: []string{"us"}, Name: "far", IdempotencyKey: "elsewhere-1"}
	sb := create(t, here, req)
	if r := sb.GetPlacement().GetRegion(); r != "us" {
		t.Fatalf("it is in %q", r)
	}
	again := create(t, here, req)
	if again.GetId() != sb.GetId() {
		t.Errorf("the same key made %s and %s", sb.GetId(), again.GetId())
	}
	if _, err := here.Create(t.Context(), &siroccov1.CreateSandboxRequest{Regions: []string{"us"}, IdempotencyKey: "elsewhere-1"}); sirocco.CodeOf(err) != sirocco.InvalidArgument {
		t.Errorf("the same key with another request: %v", err)
	}
	for _, id := range []string{sb.GetId(), "far"} {
		if got, err := here.Get(t.Context(), id); err != nil || got.GetId() != sb.GetId() {
			t.Errorf("get %s: %v", id, err)
		}
	}
	listed := false
	for got, err := range here.List(t.Context(), &siroccov1.ListSandboxesRequest{}) {
		if err != nil {
			t.Fatal(err)
		}
		listed = listed || got.GetId() == sb.GetId()
	}
	if !listed {
		t.Error("it is not on the list")
	}
	out, err := world.CLI(t.Context(), "exec", sb.GetId(), "--", "echo", "over there")
	if err != nil {
		t.Errorf("exec: %v: %s", err, out)
	}
	if out, err := world.CLI(t.Context(), "tag", "far", "a=b"); err != nil {
		t.Errorf("tag: %v: %s", err, out)
	}
	if _, err := here.Get(t.Context(), "sb-00000000000000000000000000"); sirocco.CodeOf(err) != sirocco.NotFound {
		t.Errorf("one that is nowhere: %v", err)
	}
}

// TestKeysOpenEveryRegion: one that is made in a region opens the other, until it is
// revoked.
func TestKeysOpenEveryRegion(t *testing.T) {
	there := client(t, us, world.Ready[eu].Key)
	platform.Eventually(t, 20*time.Second, func() string {
		if _, err := there.Regions().List(t.Context(), connect.NewRequest(&siroccov1.ListRegionsRequest{})); err != nil {
			return err.Error()
		}
		return ""
	})
	stranger := client(t, us, "sk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	if _, err := stranger.Regions().List(t.Context(), connect.NewRequest(&siroccov1.ListRegionsRequest{})); sirocco.CodeOf(err) != sirocco.Unauthenticated {
		t.Errorf("a key that nobody made: %v", err)
	}
}

// TestAPersonsWord: it beats the controller in both regions, and is taken back.
func TestAPersonsWord(t *testing.T) {
	bothServe(t)
	if out, err := world.CLI(t.Context(), "region", "set-weight", "eu", "0", "--for", "1m"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i := range world.Ready {
		c := client(t, i, "")
		platform.Eventually(t, 20*time.Second, func() string {
			if r := regionsOf(t, c)["eu"]; r.GetWeight() != 0 || r.SetWeight == nil {
				return fmt.Sprintf("eu, seen from %s, has %.2f", world.Ready[i].Region, r.GetWeight())
			}
			return ""
		})
	}
	for range 5 {
		if r := create(t, client(t, eu, ""), &siroccov1.CreateSandboxRequest{}).GetPlacement().GetRegion(); r != "us" {
			t.Errorf("a closed region got a sandbox: %s", r)
		}
	}
	if _, err := client(t, eu, "").Create(t.Context(), &siroccov1.CreateSandboxRequest{Regions: []string{"eu"}}); sirocco.CodeOf(err) != sirocco.NoCapacity {
		t.Errorf("a create that allows the closed one only: %v", err)
	}
	if out, err := world.CLI(t.Context(), "region", "set-weight", "eu", "--lift"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	bothServe(t)
	for _, bad := range []*siroccov1.SetRegionWeightRequest{
		{Region: "mars", Weight: proto.Float64(0)}, {Region: "eu", Weight: proto.Float64(1.5)},
		{Region: "eu", Weight: proto.Float64(0), Hold: durationpb.New(-time.Second)},
	} {
		if _, err := client(t, eu, "").Regions().SetWeight(t.Context(), connect.NewRequest(bad)); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

// shown returns what a list of sandboxes says of regions that are away: those that are
// not on it, and those that are only remembered.
func shown(t *testing.T) (missing, lost []string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, world.Ready[eu].API+"/v1/sandboxes", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+world.Ready[eu].Key)
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var page struct {
		Missing []string `json:"missing_regions"`
		Lost    []struct {
			Region string `json:"region"`
		} `json:"lost_regions"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&page); err != nil {
		t.Fatal(err)
	}
	for _, l := range page.Lost {
		lost = append(lost, l.Region)
	}
	return page.Missing, lost
}

// TestRegionKilled: while one region is killed with its bus, again and again, the other
// creates without an error; it is seen as dead, and alive again.
func TestRegionKilled(t *testing.T) {
	bothServe(t)
	here := client(t, eu, "")
	far, err := here.Create(t.Context(), &siroccov1.CreateSandboxRequest{Regions: []string{"us"}})
	if err != nil {
		t.Fatal(err)
	}
	before := world.Process("us")
	if err := world.Freeze("us"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.Thaw("us"); err != nil {
			t.Error(err)
		}
	})
	slowest := time.Duration(0)
	dead := false
	platform.Eventually(t, 30*time.Second, func() string {
		began := time.Now()
		sb, err := here.Create(t.Context(), &siroccov1.CreateSandboxRequest{Regions: []string{"eu"}})
		if err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(began))
		if _, err := sb.Terminate(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		us := regionsOf(t, here)["us"]
		if dead = !us.GetAlive() && us.GetWeight() == 0; !dead {
			return fmt.Sprintf("us is still alive: %v", us.GetReasons())
		}
		return ""
	})
	t.Logf("the slowest create beside a region that hangs took %v", slowest)
	for range 5 {
		if r := create(t, here, &siroccov1.CreateSandboxRequest{}).GetPlacement().GetRegion(); r != "eu" {
			t.Errorf("a dead region got a sandbox: %s", r)
		}
	}
	if sb, err := here.Get(t.Context(), far.ID); err != nil || sb.GetLost().GetRegion() != "us" || sb.GetEnd() != nil {
		t.Errorf("one of a region that is gone: %v, %v", sb, err)
	}
	if _, err := here.Sandbox(far.ID).Extend(t.Context(), time.Minute); sirocco.CodeOf(err) != sirocco.Unavailable {
		t.Errorf("one of a region that is gone was changed: %v", err)
	}
	if missing, lost := shown(t); len(missing) > 0 || !slices.Equal(lost, []string{"us"}) {
		t.Errorf("the list misses %v, and remembers %v", missing, lost)
	}
	if err := world.Kill("us"); err != nil {
		t.Fatal(err)
	}
	platform.Eventually(t, 30*time.Second, func() string {
		if now := world.Process("us"); now == 0 || now == before {
			return "it is not started again"
		}
		return ""
	})
	platform.Eventually(t, 90*time.Second, func() string {
		if us := regionsOf(t, here)["us"]; !us.GetAlive() || us.GetWeight() == 0 {
			return fmt.Sprintf("us, started again, gets nothing: alive %v, %v", us.GetAlive(), us.GetReasons())
		}
		return ""
	})
}

// TestTrafficSlidesAway from a region that fails, on request, and no create through the
// other fails for it once it has drained.
func TestTrafficSlidesAway(t *testing.T) {
	bothServe(t)
	here := client(t, eu, "")
	before := regionsOf(t, here)["us"].GetWeight()
	if out, err := world.CLI(t.Context(), "fault", "region", "us", "--errors", "100%", "--data", world.Data()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	there := client(t, us, "")
	platform.Eventually(t, time.Minute, func() string {
		// It fails for those who ask there, and its schedulers see it.
		if sb, err := there.Create(t.Context(), &siroccov1.CreateSandboxRequest{Regions: []string{"us"}}); err == nil && sb.Record.GetState() == siroccov1.State_STATE_RUNNING {
			return "a start succeeds that was to fail"
		}
		if w := regionsOf(t, here)["us"]; w.GetWeight() > before/3 {
			return fmt.Sprintf("us still has %.2f of %.2f: %v", w.GetWeight(), before, w.GetReasons())
		}
		return ""
	})
	if out, err := world.CLI(t.Context(), "fault", "clear", "--data", world.Data()); err != nil || out != "1 taken back\n" {
		t.Errorf("%v: %s", err, out)
	}
	create(t, there, &siroccov1.CreateSandboxRequest{Regions: []string{"us"}})
}
