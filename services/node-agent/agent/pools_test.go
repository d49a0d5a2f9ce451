package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/image"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/sim"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// bench is a node without a bus, with its pools.
func bench(t *testing.T, host *sim.Host, dir string) *Agent {
	t.Helper()
	cfg := Config{
		Runtime: "sim", StateDir: dir, Starts: 4, PoolBytes: 64 * cellBytes, PoolAge: time.Hour, Simulation: NewSimulation(),
		CPUMillis: 1000, MemoryBytes: 1 << 40, Sandboxes: 1000,
	}
	cfg.Simulation.Host = host
	a := &Agent{
		cfg: cfg, log: slog.New(slog.NewTextHandler(io.Discard, nil)), beat: make(chan struct{}, 1),
		tracer: tracenoop.NewTracerProvider().Tracer(""), machines: map[string]*machine{},
	}
	var err error
	if a.metrics, err = newMetrics(noop.NewMeterProvider().Meter(""), a); err != nil {
		t.Fatal(err)
	}
	if err := a.open(); err != nil {
		t.Fatal(err)
	}
	a.imports = newImports(nil, a.parts.images)
	if err := a.stock(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.pools.empty)
	return a
}

func request(image string) template {
	return templateOf(&siroccov1.CreateSandboxRequest{Image: image, Resources: &siroccov1.Resources{}, Network: &siroccov1.NetworkPolicy{}})
}

// declare makes n cells of a template wanted.
func declare(a *Agent, t template, n int32) {
	a.pools.declare(map[string]*siroccov1.Pool{"p": {Name: "p", Template: t.Template, Key: t.key, Warm: n, Max: n}})
}

func (p *pools) count(key string) int { return int(p.counts()[key]) }

// until runs the pools until a condition holds.
func until(t *testing.T, a *Agent, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !ok() {
		a.pools.upkeep(ctx, time.Now())
		if a.pools.work.Wait(); ctx.Err() != nil {
			t.Fatalf("%s: it does not come to that", what)
		}
	}
}

// TestClaimsGetACellEach: claims race refills, expiry and kills; nobody gets what
// another has, what is given up, or what is dead.
func TestClaimsGetACellEach(t *testing.T) {
	host := sim.NewHost(sim.Limits{})
	a := bench(t, host, t.TempDir())
	want := request("base")
	declare(a, want, 16)
	until(t, a, "fill", func() bool { return a.pools.count(want.key) == 16 })

	stop := make(chan struct{})
	var around sync.WaitGroup
	around.Go(func() { // upkeep, now and in a time when all have expired
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				a.pools.upkeep(t.Context(), time.Now().Add(time.Duration(i%2)*2*time.Hour))
			}
		}
	})
	around.Go(func() { // some die while they are warm
		for {
			select {
			case <-stop:
				return
			default:
			}
			a.pools.mu.Lock()
			for id := range a.pools.shelves[want.key].warm {
				_ = host.Exit(id, 1)
				break
			}
			a.pools.mu.Unlock()
		}
	})
	var mu sync.Mutex
	got := map[string]*cell{}
	var claims sync.WaitGroup
	for range 8 {
		claims.Go(func() {
			for enough := false; !enough && t.Context().Err() == nil; {
				b := a.pools.claim(t.Context(), want)
				if b == nil {
					continue
				}
				mu.Lock()
				enough = len(got) >= 50
				if got[b.id] != nil {
					t.Errorf("%s was handed out twice", b.id)
				}
				got[b.id] = b
				mu.Unlock()
				a.pools.forget(b.id)
			}
		})
	}
	claims.Wait()
	close(stop)
	around.Wait()
	a.pools.work.Wait()
	for id, b := range got {
		if b.dead() {
			t.Errorf("%s was given up although it had been claimed", id)
		}
		if err := a.cells.destroy(t.Context(), b); err != nil {
			t.Error(err)
		}
	}
	a.pools.pause(true)
	until(t, a, "empty", func() bool { return host.Len() == 0 })
	if left := a.cells.living(); len(left) > 0 {
		t.Errorf("held for nobody: %v", left)
	}
}

// TestRefillsComeBehindClaims: nothing is built while starts are in progress.
func TestRefillsComeBehindClaims(t *testing.T) {
	host := sim.NewHost(sim.Limits{})
	a := bench(t, host, t.TempDir())
	want := request("base")
	declare(a, want, 4)
	until(t, a, "fill", func() bool { return a.pools.count(want.key) == 4 })
	a.pools.upkeep(t.Context(), time.Now()) // sees that they are filled
	end := a.pools.begin()
	for range 10 { // a burst that empties the pool
		if b := a.pools.claim(t.Context(), want); b != nil {
			a.pools.forget(b.id)
		}
	}
	for range 5 {
		a.pools.upkeep(t.Context(), time.Now())
		a.pools.work.Wait()
	}
	if n := a.pools.count(want.key); n != 0 || host.Len() != 4 {
		t.Errorf("%d warm, %d in all, while a start was in progress", n, host.Len())
	}
	end()
	until(t, a, "refill", func() bool { return a.pools.count(want.key) == 4 })
}

// TestFailingBuildsWait: a template that can't be built costs little, and is tried
// again.
func TestFailingBuildsWait(t *testing.T) {
	host := sim.NewHost(sim.Limits{})
	a := bench(t, host, t.TempDir())
	want := request(MissingImage)
	declare(a, want, 3)
	for range 20 {
		a.pools.upkeep(t.Context(), time.Now())
		a.pools.work.Wait()
	}
	s := a.pools.shelves[want.key]
	if s.failures == 0 || s.failures > 3 || !s.NotBefore.After(time.Now()) {
		t.Errorf("%d failures, next at %s", s.failures, s.NotBefore)
	}
	if err := a.pools.awaitFilled(t.Context()); err != nil {
		t.Errorf("the node waits for what can't be built: %v", err)
	}
	before := s.failures
	a.pools.upkeep(t.Context(), time.Now().Add(buildPatience))
	a.pools.work.Wait()
	if s.failures <= before {
		t.Error("it was not tried again")
	}
	if left := a.cells.living(); len(left) > 0 {
		t.Errorf("held for nobody: %v", left)
	}
}

// TestWarmCellsOutliveTheirAgent: the next one finds them, and does not take a
// claimed one for warm.
func TestWarmCellsOutliveTheirAgent(t *testing.T) {
	host, dir := sim.NewHost(sim.Limits{}), t.TempDir()
	a := bench(t, host, dir)
	want := request("base")
	declare(a, want, 3)
	until(t, a, "fill", func() bool { return a.pools.count(want.key) == 3 })
	a.pools.forget(a.pools.claim(t.Context(), want).id) // and its sandbox's entry was lost
	warm := a.pools.counts()
	if err := a.parts.runtime.Close(); err != nil {
		t.Fatal(err)
	}

	next := bench(t, host, dir)
	if err := next.adopt(t.Context(), t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := next.pools.counts(); got[want.key] != warm[want.key] || host.Len() != 2 {
		t.Errorf("%v after the restart, %v before; %d cells", got, warm, host.Len())
	}
	if b := next.pools.claim(t.Context(), want); b == nil {
		t.Error("no claim")
	} else if _, err := b.guest(t.Context()); err != nil {
		t.Errorf("its supervisor: %v", err)
	}
}

// TestOldImagesAreNotHandedOut: an image that was imported anew empties its pool.
func TestOldImagesAreNotHandedOut(t *testing.T) {
	a := bench(t, sim.NewHost(sim.Limits{}), t.TempDir())
	mine, other := request("mine"), request("other")
	for _, want := range []template{mine, other} {
		declare(a, want, 2)
		until(t, a, "fill", func() bool { return a.pools.count(want.key) == 2 })
	}
	a.pools.outdate("mine")
	if b := a.pools.claim(t.Context(), mine); b != nil {
		t.Error("an old one was handed out")
	}
	if b := a.pools.claim(t.Context(), other); b == nil {
		t.Error("another image's pool was emptied")
	}
}

// hookedImages tells when an image has been looked up.
type hookedImages struct {
	simImages
	found func()
}

func (h hookedImages) Resolve(ctx context.Context, ref string) (image.Image, error) {
	img, err := h.simImages.Resolve(ctx, ref)
	h.found()
	return img, err
}

// TestOldImagesAreNotShelved: an image that was imported anew or removed while a cell was
// built of what it had been.
func TestOldImagesAreNotShelved(t *testing.T) {
	host := sim.NewHost(sim.Limits{})
	a := bench(t, host, t.TempDir())
	want, looked := request("mine"), 0
	a.imports.images = hookedImages{found: func() {
		if looked++; looked == 1 {
			a.pools.outdate("mine")
		}
	}}
	declare(a, want, 1)
	a.pools.upkeep(t.Context(), time.Now())
	a.pools.work.Wait()
	if n := a.pools.count(want.key); n != 0 || looked != 1 || host.Len() != 0 {
		t.Errorf("%d are warm, and %d there, after %d builds; the image is another one", n, host.Len(), looked)
	}
	until(t, a, "fill", func() bool { return a.pools.count(want.key) == 1 })
}

// TestDeadCellsAreReplaced: one that was killed while it was warm.
func TestDeadCellsAreReplaced(t *testing.T) {
	host := sim.NewHost(sim.Limits{})
	a := bench(t, host, t.TempDir())
	want := request("base")
	declare(a, want, 2)
	until(t, a, "fill", func() bool { return a.pools.count(want.key) == 2 })
	for id := range a.pools.shelves[want.key].warm {
		if err := host.End(id, runtime.Exit{Err: fmt.Errorf("killed from outside")}); err != nil {
			t.Fatal(err)
		}
	}
	if b := a.pools.claim(t.Context(), want); b != nil {
		t.Error("a dead one was handed out")
	}
	until(t, a, "refill", func() bool { return a.pools.count(want.key) == 2 && host.Len() == 2 })
}
