package regions

import (
	"context"
	"fmt"
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

// beside is what users of one region see while the other one, us, is gone.
type beside struct {
	here  *sirocco.Client
	began time.Time

	mu            sync.Mutex
	creates, gets []time.Duration
	caught        int // creates that were on their way to us as it went
	lost, dead    time.Duration
}

// visit is one user, who makes a sandbox, looks at sb, which is in us, and ends his own.
func (b *beside) visit(t *testing.T, sb string, spec *siroccov1.CreateSandboxRequest) {
	at := time.Now()
	made, err := b.here.Create(t.Context(), spec)
	create := time.Since(at)
	if sirocco.CodeOf(err) == sirocco.Unavailable && strings.Contains(err.Error(), "with this key may have arrived in region us") {
		// The client, which had asked again with its key, has not waited until us was back.
		b.mu.Lock()
		b.caught++
		b.mu.Unlock()
		return
	}
	if err != nil {
		t.Errorf("a create beside a region that is gone: %v", err)
		return
	}
	defer func() {
		if _, err := made.Terminate(t.Context(), ""); err != nil {
			t.Errorf("an end beside a region that is gone: %v", err)
		}
	}()
	if made.Record.GetState() != siroccov1.State_STATE_RUNNING {
		t.Errorf("beside a region that is gone, it is %v", made.Record)
	}
	if made.Record.GetPlacement().GetRegion() != "eu" {
		// It may have arrived there, so it is made nowhere else, and waits for us.
		b.mu.Lock()
		b.caught++
		b.mu.Unlock()
		return
	}
	at = time.Now()
	got, err := b.here.Get(t.Context(), sb)
	if err != nil {
		t.Errorf("one of a region that is gone: %v", err)
		return
	}
	if got.GetEnd() != nil || got.GetState() != siroccov1.State_STATE_RUNNING {
		t.Errorf("it was decided what has become of it: %v", got)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.creates, b.gets = append(b.creates, create), append(b.gets, time.Since(at))
	if b.lost == 0 && got.GetLost().GetRegion() == "us" {
		b.lost = time.Since(b.began)
	}
	if b.dead == 0 && got.GetLost().GetDead() {
		b.dead = time.Since(b.began)
	}
}

// regionAway kills us for some time and reports what users of the other region see of
// it: sb is a sandbox of us, here a client of the other.
func regionAway(t *testing.T, w *platform.Regions, here *sirocco.Client, sb string, spec *siroccov1.CreateSandboxRequest) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), away)
	defer stop()
	seen := &beside{here: here, began: time.Now()}
	killed := keepKilled(ctx, t, w, "us")
	var visits sync.WaitGroup
	for ctx.Err() == nil {
		over := make(chan struct{})
		visits.Go(func() {
			defer close(over)
			seen.visit(t, sb, spec)
		})
		select {
		case <-over:
		case <-time.After(time.Second): // the next one does not wait for who does
		}
	}
	<-killed
	visits.Wait()
	if len(seen.creates) < 2 {
		t.Fatalf("beside a region that is gone: %d creates, %d on their way to it", len(seen.creates), seen.caught)
	}
	slices.Sort(seen.creates)
	slices.Sort(seen.gets)
	create, get := seen.creates[len(seen.creates)/2], seen.gets[len(seen.gets)-1]
	t.Logf("beside a region that is gone: %d creates, half within %v, the slowest %v, and %d on their way to it; gets of its sandbox, half within %v, the slowest %v; lost after %v, dead after %v",
		len(seen.creates), create, seen.creates[len(seen.creates)-1], seen.caught, seen.gets[len(seen.gets)/2], get, seen.lost, seen.dead)
	if create > time.Second || get > 3*time.Second || seen.caught > 2 {
		t.Error("the others do not serve within a second")
	}
	if seen.lost == 0 || seen.lost > 3*time.Second {
		t.Errorf("it was said to be lost after %v", seen.lost)
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

// startReal starts two regions with real sandboxes, and waits until one can be created in
// us, which it returns.
func startReal(t *testing.T) (w *platform.Regions, here *sirocco.Client, far *sirocco.Sandbox) {
	t.Helper()
	w, err := platform.StartRegions([]string{"eu", "us"}, "--runtime", "gvisor", "--stop-sandboxes", "--node-name", fmt.Sprintf("x%d", os.Getpid()%100000), "--set", "api.region-lost-after=4s", "--set", "scheduler.region-dead-after="+deadAfter)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Stop(); err != nil {
			t.Error(err)
		}
	})
	if here, err = w.Client(eu, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(here.Close)
	platform.Eventually(t, time.Minute, func() string {
		far, err = here.Create(t.Context(), &siroccov1.CreateSandboxRequest{Regions: []string{"us"}, MaxLifetime: durationpb.New(time.Hour)})
		if err != nil {
			return err.Error()
		}
		return ""
	})
	return w, here, far
}

// TestRealRegionLost: real sandboxes go on without their region's processes, and are
// found again with their memory and files. One that asked for it goes on elsewhere from
// its last checkpoint, and no longer where it was.
func TestRealRegionLost(t *testing.T) {
	w, here, far := startReal(t)
	if out, err := w.CLI(t.Context(), "exec", far.ID, "--", "sh", "-c", "echo kept > /tmp/kept"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	regionAway(t, w, here, far.ID, &siroccov1.CreateSandboxRequest{})
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
		out, err := w.CLI(t.Context(), "exec", far.ID, "--", "cat", "/tmp/kept")
		if err != nil || out != "kept\n" {
			return fmt.Sprintf("exec: %v: %s", err, out)
		}
		return ""
	})
	t.Logf("found again, and serving, %v after its region was no longer kept away", time.Since(back))
	realRestored(t, w, here)
}

// counter counts in its memory, under a name that it gives itself when it starts.
const counter = "n=$(cat /proc/sys/kernel/random/uuid); i=0; while :; do i=$((i+1)); echo $n $i > /tmp/next; mv /tmp/next /tmp/count; sleep 0.1; done"

// realRestored kills the region of a real sandbox that counts, until it counts elsewhere.
func realRestored(t *testing.T, w *platform.Regions, here *sirocco.Client) {
	t.Helper()
	there, err := w.Client(us, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(there.Close)
	var sb *sirocco.Sandbox
	platform.Eventually(t, time.Minute, func() string { // it must be allowed in eu, too
		sb, err = there.Create(t.Context(), &siroccov1.CreateSandboxRequest{
			Command: []string{"sh", "-c", counter}, MaxLifetime: durationpb.New(time.Hour),
			OnRegionLoss: siroccov1.OnRegionLoss_ON_REGION_LOSS_RESTORE, CheckpointInterval: durationpb.New(10 * time.Second),
		})
		if err != nil {
			return err.Error()
		}
		if region := sb.Record.GetPlacement().GetRegion(); region != "us" {
			_, err := sb.Terminate(t.Context(), "")
			return fmt.Sprintf("it was placed in %s; its end: %v", region, err)
		}
		return ""
	})
	var name string
	var before int
	platform.Eventually(t, time.Minute, func() (why string) {
		name, before, why = count(t, w, sb.ID)
		return why
	})
	awaitCopy(t, w, sb.ID)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	killed, began := keepKilled(ctx, t, w, "us"), time.Now()
	platform.Eventually(t, restored, func() string {
		got, err := here.Get(t.Context(), sb.ID)
		if err != nil {
			return err.Error()
		}
		if p := got.GetPlacement(); p.GetRegion() != "eu" || p.GetEpoch() < 2 || got.GetState() != siroccov1.State_STATE_RUNNING {
			return fmt.Sprintf("it is %v", got)
		}
		now, n, why := count(t, w, sb.ID)
		if why == "" && (now != name || n < before) {
			t.Fatalf("it was %s at %d and is %s at %d", name, before, now, n)
		}
		return why
	})
	t.Logf("a real sandbox counts on in another region %v after its own was lost", time.Since(began))
	stop()
	<-killed
	platform.Eventually(t, time.Minute, func() string { // its services are only just starting
		if w.Process("us") == 0 {
			return "us does not run"
		}
		_, err := there.Get(t.Context(), sb.ID)
		if err != nil {
			return err.Error()
		}
		return ""
	})
	if broken := checker(t, w).Settled(t.Context(), time.Minute); len(broken) > 0 {
		t.Errorf("with its region back:\n%s", strings.Join(broken, "\n"))
	}
	if now, n, why := count(t, w, sb.ID); why != "" || now != name || n < before {
		t.Errorf("with its region back, it is %s at %d, was %s at %d; %s", now, n, name, before, why)
	}
}

// count reads what a counter has written; why it can't is not empty.
func count(t *testing.T, w *platform.Regions, id string) (name string, n int, why string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := w.CLI(ctx, "exec", id, "--", "cat", "/tmp/count")
	if err != nil {
		return "", 0, fmt.Sprintf("%v: %s", err, out)
	}
	if _, err := fmt.Sscan(out, &name, &n); err != nil {
		return "", 0, fmt.Sprintf("it has counted %q", out)
	}
	return name, n, ""
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
