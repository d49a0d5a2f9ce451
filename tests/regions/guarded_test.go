package regions

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// restored is within which time a sandbox of a lost region runs elsewhere: its bus is
	// seen to be away (6 s), the region is given up (15 s); the rest is for a machine
	// that has other things to do.
	restored = 90 * time.Second
	path     = "/tmp/state"
)

// guarded makes two sandboxes in us with a file each: one that is to be restored, of whose
// file a checkpoint is kept in eu, and one that is to be kept where it is.
func guarded(t *testing.T) (restore, keep *sirocco.Sandbox) {
	t.Helper()
	bothServe(t)
	there := client(t, us, "")
	kept := create(t, there, &siroccov1.CreateSandboxRequest{Regions: []string{"us"}, MaxLifetime: durationpb.New(time.Hour)})
	var guarded *siroccov1.Sandbox
	for guarded.GetPlacement().GetRegion() != "us" { // it must be allowed in eu, too
		guarded = create(t, there, &siroccov1.CreateSandboxRequest{
			OnRegionLoss: siroccov1.OnRegionLoss_ON_REGION_LOSS_RESTORE, CheckpointInterval: durationpb.New(10 * time.Second), MaxLifetime: durationpb.New(time.Hour),
		})
	}
	restore, keep = there.Sandbox(guarded.GetId()), there.Sandbox(kept.GetId())
	write(t, restore, "older")
	write(t, keep, "older")
	awaitCopy(t, world, restore.ID)
	return restore, keep
}

// awaitCopy waits until a checkpoint is kept elsewhere of what the sandbox is now.
func awaitCopy(t *testing.T, w *platform.Regions, id string) {
	t.Helper()
	before := copies(t, w, id)
	platform.Eventually(t, time.Minute, func() string {
		if n := copies(t, w, id); n < before+2 { // the next may have begun before
			return fmt.Sprintf("%d checkpoints are kept, of which %d are old", n, before)
		}
		return ""
	})
}

// copies is how many checkpoints of a sandbox were kept.
func copies(t *testing.T, w *platform.Regions, id string) int {
	t.Helper()
	text, err := os.ReadFile(w.Log())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "checkpoint kept elsewhere") && strings.Contains(line, id) {
			n++
		}
	}
	return n
}

func write(t *testing.T, sb *sirocco.Sandbox, text string) {
	t.Helper()
	if _, err := sb.WriteFile(t.Context(), path, strings.NewReader(text), sirocco.WriteOptions{MakeParents: true}); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, sb *sirocco.Sandbox) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	r, err := sb.ReadFile(ctx, path, 0, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = r.Close() }()
	text, err := io.ReadAll(r)
	return string(text), err
}

// awaitRestored waits until a sandbox of us runs in eu, with its file.
func awaitRestored(t *testing.T, id string) {
	t.Helper()
	began := time.Now()
	here := client(t, eu, "")
	platform.Eventually(t, restored, func() string {
		sb, err := here.Get(t.Context(), id)
		if err != nil {
			return err.Error()
		}
		if p := sb.GetPlacement(); p.GetRegion() != "eu" || p.GetEpoch() < 2 || sb.GetState() != siroccov1.State_STATE_RUNNING || sb.GetLost() != nil {
			return fmt.Sprintf("it is %v", sb)
		}
		text, err := read(t, here.Sandbox(id))
		if err != nil || text != "older" {
			return fmt.Sprintf("its file: %q, %v", text, err)
		}
		return ""
	})
	t.Logf("restored in another region %v after its own was lost", time.Since(began))
}

// follows waits until the region that was lost sends users to the sandbox's new place.
func follows(t *testing.T, id string) {
	t.Helper()
	there := client(t, us, world.Ready[us].Key)
	platform.Eventually(t, 90*time.Second, func() string {
		sb, err := there.Get(t.Context(), id)
		if err != nil {
			return err.Error()
		}
		if p := sb.GetPlacement(); p.GetRegion() != "eu" || p.GetEpoch() < 2 || sb.GetEnd() != nil {
			return fmt.Sprintf("seen from its old region it is %v", sb)
		}
		return ""
	})
}

// TestRestoredElsewhere: with all of its region killed, the sandbox that asked for it is
// brought up in the other one, and the region learns so when it is back.
func TestRestoredElsewhere(t *testing.T) {
	restore, keep := guarded(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	killed := keepKilled(ctx, t, world, "us")
	awaitRestored(t, restore.ID)
	here := client(t, eu, "")
	if sb, err := here.Get(t.Context(), keep.ID); err != nil || sb.GetLost().GetRegion() != "us" || sb.GetEnd() != nil {
		t.Errorf("the one that is to be kept: %v, %v", sb, err)
	}
	write(t, here.Sandbox(restore.ID), "newer")
	stop()
	<-killed
	follows(t, restore.ID)
	if text, err := read(t, here.Sandbox(restore.ID)); err != nil || text != "newer" {
		t.Errorf("after its region is back, its file is %q, %v", text, err)
	}
}

// TestNoOldEpochServes: a region that hangs and goes on, with all of its sandboxes, does
// not serve what was taken over for a moment; what was to be kept is found again.
func TestNoOldEpochServes(t *testing.T) {
	restore, keep := guarded(t)
	for _, sb := range []*sirocco.Sandbox{restore, keep} {
		if text, err := read(t, sb); err != nil || text != "older" { // from here on it has connections and a token
			t.Fatal(text, err)
		}
	}
	if err := world.Freeze("us"); err != nil {
		t.Fatal(err)
	}
	thaw := func() {
		if err := world.Thaw("us"); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(thaw)
	awaitRestored(t, restore.ID)
	write(t, client(t, eu, "").Sandbox(restore.ID), "newer")
	thaw()
	refused := 0
	platform.Eventually(t, 90*time.Second, func() string {
		switch text, err := read(t, restore); {
		case err != nil:
			refused++
			return err.Error()
		case text != "newer":
			t.Fatalf("its old epoch has served: %q, after %d refusals", text, refused)
		}
		return ""
	})
	follows(t, restore.ID)
	platform.Eventually(t, time.Minute, func() string {
		sb, err := client(t, eu, "").Get(t.Context(), keep.ID)
		if err != nil {
			return err.Error()
		}
		if sb.GetLost() != nil || sb.GetPlacement().GetEpoch() != 1 || sb.GetState() != siroccov1.State_STATE_RUNNING {
			return fmt.Sprintf("it is %v", sb)
		}
		if text, err := read(t, keep); err != nil || text != "older" {
			return fmt.Sprintf("its file: %q, %v", text, err)
		}
		return ""
	})
	t.Logf("%d calls were refused before the newer epoch answered", refused)
}

// TestGuardAway: cut off from its guard, a sandbox that is to be restored stands still
// before it could be taken over, and goes on afterwards; others do not notice.
func TestGuardAway(t *testing.T) {
	restore, keep := guarded(t)
	if out, err := world.CLI(t.Context(), "fault", "bus", "eu", "--stop", "30s", "--data", world.Data()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	began := time.Now()
	platform.Eventually(t, 14*time.Second, func() string {
		if text, err := read(t, keep); err != nil || text != "older" {
			t.Fatalf("the one that is to be kept: %q, %v", text, err)
		}
		if _, err := read(t, restore); sirocco.CodeOf(err) != sirocco.Unavailable {
			return fmt.Sprintf("it still serves: %v", err)
		}
		return ""
	})
	t.Logf("it stands still %v after its guard went away", time.Since(began))
	platform.Eventually(t, time.Minute, func() string {
		if text, err := read(t, restore); err != nil || text != "older" {
			return fmt.Sprintf("its file: %q, %v", text, err)
		}
		return ""
	})
	if sb, err := client(t, us, "").Get(t.Context(), restore.ID); err != nil || sb.GetPlacement().GetEpoch() != 1 || sb.GetPlacement().GetRegion() != "us" {
		t.Errorf("afterwards it is %v, %v", sb, err)
	}
	bothServe(t)
}
