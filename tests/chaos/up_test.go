package chaos

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/invariants"
	"github.com/sirocco-run/sirocco/pkg/rundir"
	"github.com/sirocco-run/sirocco/tests/platform"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"google.golang.org/protobuf/types/known/durationpb"
)

// upRounds is how often the whole platform is killed.
const upRounds = 5

// kill -9 of the whole `sirocco up`, then start again: every sandbox still runs,
// is known, can be exec'd and reached; a deadline that passed meanwhile has been
// applied, as has the end of a command.
func TestUpKilled(t *testing.T) {
	up, err := platform.StartUp("killed")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := up.Stop(); err != nil {
			t.Error(err)
		}
	})
	c, err := up.Client("")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	web := webClient(t, up.CA)
	var veterans []*veteran
	for range 5 {
		veterans = append(veterans, enlist(t, c))
	}
	for round := range upRounds {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		short := create(t, c, &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(time.Second)})
		leaves := create(t, c, &siroccov1.CreateSandboxRequest{Command: []string{"sh", "-c", "sleep 1; exit 7"}})
		deadline := short.Record.GetDesired().GetDeadline().AsTime()
		// Some are on their way when it happens.
		key := "on-its-way-" + short.ID
		if _, err := c.Create(ctx, &siroccov1.CreateSandboxRequest{IdempotencyKey: key, Wait: siroccov1.Wait_WAIT_ACCEPTED}); err != nil {
			t.Fatal(err)
		}
		up.Kill()
		<-time.After(time.Until(deadline) + 500*time.Millisecond)
		began := time.Now()
		if err := up.Start(); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: it serves again after %v, %d sandboxes found again", round, time.Since(began).Round(time.Millisecond), up.Adopted)
		for _, v := range veterans {
			if err := platform.Poll(20*time.Second, func() string { return v.serves(ctx, web) }); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			if why := v.same(ctx, c); why != "" {
				t.Fatalf("round %d: %s", round, why)
			}
		}
		if sb := ended(t, c, short); sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_MAX_LIFETIME {
			t.Errorf("round %d: a deadline that passed: %v", round, sb.GetEnd())
		}
		if sb := ended(t, c, leaves); sb.GetEnd().GetCause() != siroccov1.Cause_CAUSE_EXITED || sb.GetEnd().GetExitCode() != 7 {
			t.Errorf("round %d: a command that ended meanwhile: %v", round, sb.GetEnd())
		}
		again, err := c.Create(ctx, &siroccov1.CreateSandboxRequest{IdempotencyKey: key})
		if err != nil || !again.Existed {
			t.Errorf("round %d: the key of one on its way: %v, %v", round, again, err)
		}
		holds(t, up)
		cancel()
	}
}

func create(t *testing.T, c *sirocco.Client, req *siroccov1.CreateSandboxRequest) *sirocco.Sandbox {
	t.Helper()
	s, err := c.Create(t.Context(), req)
	if err != nil || s.Record.GetState() != siroccov1.State_STATE_RUNNING {
		t.Fatalf("%v, %v", s, err)
	}
	return s
}

func ended(t *testing.T, c *sirocco.Client, s *sirocco.Sandbox) *siroccov1.Sandbox {
	t.Helper()
	var sb *siroccov1.Sandbox
	platform.Eventually(t, 20*time.Second, func() string {
		var err error
		if sb, err = c.Get(t.Context(), s.ID); err != nil {
			return err.Error()
		}
		if sb.GetEnd() == nil {
			return s.ID + " is " + sb.GetState().String()
		}
		return ""
	})
	return sb
}

// holds checks the invariants of a platform of one node.
func holds(t *testing.T, up *platform.Up) {
	t.Helper()
	nc, err := platform.DialBus(up.Data(), up.Bus)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	region, err := invariants.New(t.Context(), nc, []invariants.Node{{Name: up.Node, RunDir: rundir.Of(up.Node)}})
	if err != nil {
		t.Fatal(err)
	}
	platform.Eventually(t, settle, func() string { return strings.Join(region.Broken(t.Context()), "\n") })
}
