package regions

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/types/known/durationpb"
)

// away is how long the killed regions of these tests stay away.
const away = 8 * time.Second

// keepKilled kills all of a region, its bus too, and again whenever it is started, until
// ctx ends. It returns once it was killed the first time.
func keepKilled(ctx context.Context, t *testing.T, w *platform.Regions, region string) (done <-chan struct{}) {
	t.Helper()
	if err := w.Kill(region); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = w.Kill(region) // between two of its processes there is none
			case <-ctx.Done():
				return
			}
		}
	}()
	return ended
}

// regionAway kills a region for some time and reports what users of the other one see of
// it: sb is a sandbox of the killed region, here a client of the other.
func regionAway(t *testing.T, w *platform.Regions, here *sirocco.Client, sb string, spec *siroccov1.CreateSandboxRequest) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), away)
	defer stop()
	began := time.Now()
	killed := keepKilled(ctx, t, w, "us")
	var creates, gets []time.Duration
	var lost, dead time.Duration
	for ctx.Err() == nil {
		at := time.Now()
		made, err := here.Create(t.Context(), spec)
		if err != nil {
			t.Fatalf("a create beside a region that is gone: %v", err)
		}
		creates = append(creates, time.Since(at))
		if made.Record.GetPlacement().GetRegion() != "eu" || made.Record.GetState() != siroccov1.State_STATE_RUNNING {
			t.Errorf("beside a region that is gone, it is %v", made.Record)
		}
		at = time.Now()
		got, err := here.Get(t.Context(), sb)
		if err != nil {
			t.Fatalf("one of a region that is gone: %v", err)
		}
		gets = append(gets, time.Since(at))
		if got.GetEnd() != nil || got.GetState() != siroccov1.State_STATE_RUNNING {
			t.Errorf("it was decided what has become of it: %v", got)
		}
		if lost == 0 && got.GetLost().GetRegion() == "us" {
			lost = time.Since(began)
		}
		if dead == 0 && got.GetLost().GetDead() {
			dead = time.Since(began)
		}
		if _, err := made.Terminate(t.Context(), ""); err != nil {
			t.Fatalf("an end beside a region that is gone: %v", err)
		}
	}
	<-killed
	slices.Sort(creates)
	slices.Sort(gets)
	t.Logf("beside a region that is gone: %d creates, half within %v, the slowest %v; gets of its sandbox, half within %v, the slowest %v; lost after %v, dead after %v",
		len(creates), creates[len(creates)/2], creates[len(creates)-1], gets[len(gets)/2], gets[len(gets)-1], lost, dead)
	if len(creates) < 2 || creates[len(creates)/2] > time.Second || gets[len(gets)-1] > 3*time.Second {
		t.Error("the others do not serve within a second")
	}
	if lost == 0 || lost > 3*time.Second {
		t.Errorf("it was said to be lost after %v", lost)
	}
}

// TestSimulatedRegionLost: simulated sandboxes end with their region's process; when it
// is back, its own services say so.
func TestSimulatedRegionLost(t *testing.T) {
	bothServe(t)
	here := client(t, eu, "")
	far, err := here.Create(t.Context(), &siroccov1.CreateSandboxRequest{Regions: []string{"us"}, Name: "lost"})
	if err != nil {
		t.Fatal(err)
	}
	// In a region that is well: what has just been drained may be chosen by its weight.
	regionAway(t, world, here, far.ID, &siroccov1.CreateSandboxRequest{Regions: []string{"eu"}})
	back := time.Now()
	platform.Eventually(t, 90*time.Second, func() string {
		sb, err := here.Get(t.Context(), far.ID)
		if err != nil {
			return err.Error()
		}
		if sb.GetLost() != nil || sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_NODE_LOST {
			return fmt.Sprintf("it is %v", sb)
		}
		return ""
	})
	t.Logf("node_lost %v after its region was no longer kept away", time.Since(back))
	out, err := world.CLI(t.Context(), "events", far.ID, "--from", "start")
	if err != nil || !strings.Contains(out, "stopped node_lost") {
		t.Errorf("its events: %v: %s", err, out)
	}
}

// TestRealRegionLost: real sandboxes go on without their region's processes, and are
// found again with their memory and files.
func TestRealRegionLost(t *testing.T) {
	real, err := platform.StartRegions([]string{"eu", "us"}, "--runtime", "gvisor", "--stop-sandboxes", "--node-name", fmt.Sprintf("x%d", os.Getpid()%100000), "--set", "api.region-lost-after=4s", "--set", "scheduler.region-dead-after="+deadAfter)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := real.Stop(); err != nil {
			t.Error(err)
		}
	})
	here, err := real.Client(eu, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(here.Close)
	var far *sirocco.Sandbox
	platform.Eventually(t, time.Minute, func() string {
		far, err = here.Create(t.Context(), &siroccov1.CreateSandboxRequest{Regions: []string{"us"}, MaxLifetime: durationpb.New(time.Hour)})
		if err != nil {
			return err.Error()
		}
		return ""
	})
	if out, err := real.CLI(t.Context(), "exec", far.ID, "--", "sh", "-c", "echo kept > /tmp/kept"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	regionAway(t, real, here, far.ID, &siroccov1.CreateSandboxRequest{})
	back := time.Now()
	platform.Eventually(t, 90*time.Second, func() string {
		sb, err := here.Get(t.Context(), far.ID)
		if err != nil {
			return err.Error()
		}
		if sb.GetLost() != nil {
			return fmt.Sprintf("it is lost: %v", sb.GetLost())
		}
		if sb.GetState() != siroccov1.State_STATE_RUNNING || sb.GetPlacement().GetEpoch() != 1 {
			t.Fatalf("it is %v", sb)
		}
		out, err := real.CLI(t.Context(), "exec", far.ID, "--", "cat", "/tmp/kept")
		if err != nil || out != "kept\n" {
			return fmt.Sprintf("exec: %v: %s", err, out)
		}
		return ""
	})
	t.Logf("found again, and serving, %v after its region was no longer kept away", time.Since(back))
}

// TestBusHangs, on request: the region's sandboxes are said to be lost while nothing is
// heard of it, and nothing has happened to them when it is heard again.
func TestBusHangs(t *testing.T) {
	bothServe(t)
	here := client(t, eu, "")
	far := create(t, here, &siroccov1.CreateSandboxRequest{Regions: []string{"us"}})
	if out, err := world.CLI(t.Context(), "fault", "bus", "us", "--stop", away.String(), "--data", world.Data()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	began := time.Now()
	var lost, slowest time.Duration
	for time.Since(began) < away-time.Second {
		at := time.Now()
		got, err := here.Get(t.Context(), far.GetId())
		if err != nil {
			t.Fatalf("one of a region whose bus hangs: %v", err)
		}
		slowest = max(slowest, time.Since(at))
		if got.GetLost() != nil && lost == 0 {
			lost = time.Since(began)
		}
		at = time.Now()
		made, err := here.Create(t.Context(), &siroccov1.CreateSandboxRequest{Regions: []string{"eu"}})
		if err != nil {
			t.Fatalf("a create beside a bus that hangs: %v", err)
		}
		if took := time.Since(at); took > 3*time.Second {
			t.Errorf("a create beside a bus that hangs took %v", took)
		}
		if _, err := made.Terminate(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
	if lost == 0 || slowest > 5*time.Second {
		t.Errorf("it was said to be lost after %v; the slowest answer took %v", lost, slowest)
	}
	t.Logf("beside a bus that hangs: lost after %v, the slowest get %v", lost, slowest)
	platform.Eventually(t, time.Minute, func() string {
		sb, err := here.Get(t.Context(), far.GetId())
		if err != nil {
			return err.Error()
		}
		if sb.GetEnd() != nil {
			t.Fatalf("it has ended: %v", sb.GetEnd())
		}
		if sb.GetLost() != nil {
			return sb.GetLost().GetNote()
		}
		return ""
	})
	bothServe(t)
	if out, err := world.CLI(t.Context(), "fault", "bus", "us", "--latency", "400ms", "--data", world.Data()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	at := time.Now()
	if _, err := here.Get(t.Context(), far.GetId()); err != nil || time.Since(at) < 400*time.Millisecond {
		t.Errorf("through a slow bus, within %v: %v", time.Since(at), err)
	}
	if out, err := world.CLI(t.Context(), "fault", "clear", "--data", world.Data()); err != nil || !strings.HasSuffix(out, "taken back\n") {
		t.Errorf("%v: %s", err, out)
	}
}
