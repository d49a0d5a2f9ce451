//go:build compose

package compose

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
)

// count is serve beside a shell that counts; exec would end that one. What it counts, and
// a number drawn at its start, it only has in its memory; it writes them into a page over
// and over.
const count = "n=$RANDOM$RANDOM; mkdir /www && echo it works > /www/page; " +
	"(i=0; while :; do i=$((i+1)); echo $n $i > /www/next; mv /www/next /www/count; sleep 0.2; done) & " +
	"httpd -q -p 8000 -h /www"

// A sandbox goes to the other region and comes back: with its memory and files, and
// nobody who asks at its address notices.
func TestMovedBetweenRegions(t *testing.T) {
	eu, us := stack.regions["eu"], stack.regions["us"]
	sb := eu.movable(t)
	file := sh(t, sb, "head -c 3000000 /dev/urandom > /tmp/file; sha256sum /tmp/file")
	asking := eu.ask(t, sb)
	asking.await(t, 3)
	for i, to := range []*region{us, eu} {
		before := asking.last()
		t.Log(eu.cli(t.Context(), t, "migrate", sb.ID, "--to", to.name))
		asking.await(t, 3)
		now, err := eu.client(t).Get(t.Context(), sb.ID)
		if err != nil {
			t.Fatal(err)
		}
		if p := now.GetPlacement(); p.GetRegion() != to.name || p.GetEpoch() != uint64(i)+2 || now.GetState() != siroccov1.State_STATE_RUNNING {
			t.Errorf("moved to %s, it is %v in %v", to.name, now.GetState(), p)
		}
		for _, r := range []*region{eu, us} {
			c, err := r.client(t).Open(t.Context(), sb.ID)
			if err != nil {
				t.Fatal(err)
			}
			if got := sh(t, c, "sha256sum /tmp/file"); got != file {
				t.Errorf("moved to %s, through %s: %q, was %q", to.name, r.name, got, file)
			}
		}
		if after := asking.last(); after <= before {
			t.Errorf("moved to %s, it counts from %d to %d", to.name, before, after)
		}
	}
	t.Log(asking.stop(t))
}

// Where the other region is not reached nothing moves, and what has moved before is
// found again once it is.
func TestMovedAndApart(t *testing.T) {
	eu, us := stack.regions["eu"], stack.regions["us"]
	gone, stays := eu.movable(t), eu.movable(t)
	eu.cli(t.Context(), t, "migrate", gone.ID, "--to", "us")
	asking := eu.ask(t, stays)
	asking.await(t, 3)
	restore := cut(t, project+"_regions", services(t, "us")...)
	began := time.Now()
	if out, err := eu.try(t.Context(), "migrate", stays.ID, "--to", "us"); err == nil {
		t.Errorf("it was moved to where nothing is reached: %s", out)
	} else {
		t.Logf("refused after %v: %v", time.Since(began).Round(time.Millisecond), err)
	}
	asking.await(t, 3)
	there, err := us.client(t).Open(t.Context(), gone.ID)
	if err != nil {
		t.Fatal(err)
	}
	sh(t, there, "cat /www/count")
	restore()
	began = time.Now()
	if got := eu.page(t, gone); got != "it works" {
		t.Errorf("together again: %s", got)
	}
	t.Logf("what had moved answers at its address %v after the cut", time.Since(began).Round(time.Millisecond))
	t.Log(asking.stop(t))
}

// A region is emptied: its sandboxes go on in the other, and those who ask at their
// addresses do not notice.
func TestEvacuate(t *testing.T) {
	eu := stack.regions["eu"]
	// The region stays closed until somebody opens it.
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		if out, err := eu.try(ctx, "region", "evacuate", "eu", "--cancel"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	var all []*sirocco.Sandbox
	var asking []*asker
	for range 5 {
		sb := eu.movable(t)
		all, asking = append(all, sb), append(asking, eu.ask(t, sb))
	}
	for _, a := range asking {
		a.await(t, 2)
	}
	var order siroccov1.Evacuation
	if err := protojson.Unmarshal([]byte(eu.cli(t.Context(), t, "--json", "region", "evacuate", "eu", "--over", "9s")), &order); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d moved in %v, paused for %v p50, %v p99; %d failed", order.GetMoved(), time.Since(order.GetBegun().AsTime()).Round(time.Millisecond),
		order.GetPauseP50().AsDuration(), order.GetPauseP99().AsDuration(), order.GetFailed())
	if order.GetState() != siroccov1.EvacuationState_EVACUATION_STATE_DONE || order.GetHere() != 0 {
		t.Errorf("it ended as %v", &order)
	}
	for i, sb := range all {
		now, err := eu.client(t).Get(t.Context(), sb.ID)
		if err != nil || now.GetPlacement().GetRegion() != "us" || now.GetState() != siroccov1.State_STATE_RUNNING {
			t.Errorf("%s is %v in %v, %v", sb.ID, now.GetState(), now.GetPlacement(), err)
		}
		asking[i].await(t, 2)
		t.Log(asking[i].stop(t))
	}
	if sb := eu.anywhere(t); sb.Record.GetPlacement().GetRegion() != "us" {
		t.Errorf("a region that was emptied got one: %v", sb.Record.GetPlacement())
	}
	eu.cli(t.Context(), t, "region", "evacuate", "eu", "--cancel")
	platform.Eventually(t, limit, func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := one(ctx, eu.client(t), "eu"); err != nil {
			return err.Error()
		}
		return ""
	})
}

// movable makes a sandbox that runs in the region and may go to others; the test's
// end ends it.
func (r *region) movable(t testing.TB) *sirocco.Sandbox {
	t.Helper()
	var sb *sirocco.Sandbox
	// It is made where the weights say.
	platform.Eventually(t, limit, func() string {
		if sb = r.anywhere(t); sb.Record.GetPlacement().GetRegion() != r.name {
			return r.name + " gets no sandboxes"
		}
		return ""
	})
	return sb
}

// anywhere makes a sandbox that counts, by the weights.
func (r *region) anywhere(t testing.TB) *sirocco.Sandbox {
	t.Helper()
	sb, err := r.client(t).Create(t.Context(), &siroccov1.CreateSandboxRequest{
		Command: []string{"sh", "-c", count}, Ports: []*siroccov1.Port{{Port: 8000}}, Readiness: &siroccov1.Probe{TcpPort: 8000},
		MaxLifetime: durationpb.New(10 * time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, sb) })
	return sb
}

// try is cli for what may fail.
func (r *region) try(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(stack.bin, "sirocco"), args...)
	cmd.Env = r.environ()
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("sirocco %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// asker asks a sandbox for its count on two lines, at the address that it got. No request is made twice, and each must be answered.
type asker struct {
	cancel context.CancelFunc
	lines  sync.WaitGroup

	mu      sync.Mutex
	number  string // that was drawn
	count   int
	asked   int
	slowest time.Duration
	failed  []error
}

func (r *region) ask(t testing.TB, sb *sirocco.Sandbox) *asker {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	a := &asker{cancel: cancel}
	t.Cleanup(cancel)
	url := sb.Record.GetTunnels()[0].GetUrl()
	// It has begun to count, and its region's relay has heard of it.
	platform.Eventually(t, limit, func() string {
		if _, err := fetch(ctx, r.browser(t), url+"count"); err != nil {
			return err.Error()
		}
		return ""
	})
	for range 2 {
		c := r.browser(t)
		a.lines.Go(func() {
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				a.once(context.WithoutCancel(ctx), c, url+"count")
				<-tick.C
			}
		})
	}
	return a
}

func (a *asker) once(ctx context.Context, c *http.Client, url string) {
	began := time.Now()
	got, err := fetch(ctx, c, url)
	took := time.Since(began)
	number, text, _ := strings.Cut(got, " ")
	count, cerr := strconv.Atoi(text)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	a.slowest = max(a.slowest, took)
	if a.number == "" {
		a.number = number
	}
	if err = errors.Join(err, cerr); err != nil || number != a.number {
		a.failed = append(a.failed, fmt.Errorf("after %v: %q, %w", took, got, err))
		return
	}
	a.count = max(a.count, count)
}

// last is how far the sandbox has counted.
func (a *asker) last() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.count
}

// await waits until the sandbox has counted so many further.
func (a *asker) await(t testing.TB, n int) {
	t.Helper()
	until := a.last() + n
	platform.Eventually(t, limit, func() string {
		if last := a.last(); last < until {
			return fmt.Sprintf("it counted to %d, not yet to %d", last, until)
		}
		return ""
	})
}

// stop says what those saw who asked; a request that was not answered is an error of
// the test.
func (a *asker) stop(t testing.TB) string {
	t.Helper()
	a.cancel()
	a.lines.Wait()
	for _, err := range a.failed[:min(3, len(a.failed))] {
		t.Error(err)
	}
	return fmt.Sprintf("%d requests, %d failed, the slowest answered after %v", a.asked, len(a.failed), a.slowest.Round(time.Millisecond))
}
