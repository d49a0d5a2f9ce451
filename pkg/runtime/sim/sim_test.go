package sim_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	goruntime "runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/runtimetest"
	"github.com/sirocco-run/sirocco/pkg/runtime/sim"
	"pgregory.net/rapid"
)

func echo(runtime.Spec) sim.Handler {
	return func(port uint16) (net.Conn, error) {
		if port != runtimetest.EchoPort {
			return nil, runtime.ErrRefused
		}
		client, server := sim.Pipe()
		go func() {
			defer server.Close()
			r := bufio.NewReader(server)
			if _, err := r.ReadString('\n'); err == nil {
				_, _ = io.Copy(server, r)
			}
		}()
		return client, nil
	}
}

func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) runtimetest.Harness {
		host := sim.NewHost(sim.Limits{})
		return runtimetest.Harness{
			Open: func(*testing.T) runtime.Runtime { return sim.New(sim.Config{Host: host, Serve: echo}) },
			Spec: func(_ *testing.T, id string) runtime.Spec { return runtime.Spec{ID: id} },
		}
	})
}

func TestEnds(t *testing.T) {
	rt := sim.New(sim.Config{Serve: echo})
	h := rt.Host()
	for id, end := range map[string]struct {
		do   func(id string) error
		want runtime.Exit
	}{
		"exit": {func(id string) error { return h.Exit(id, 3) }, runtime.Exit{Code: 3}},
		"oom":  {h.OOM, runtime.Exit{Code: 137, Signal: "SIGKILL", OOM: true}},
	} {
		sb, err := rt.Create(t.Context(), runtime.Spec{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		c, err := sb.Dial(t.Context(), runtimetest.EchoPort)
		if err != nil {
			t.Fatal(err)
		}
		if err := end.do(id); err != nil {
			t.Fatal(err)
		}
		<-sb.Done()
		if got := sb.Exit(); got != end.want {
			t.Errorf("%s: exit %+v, want %+v", id, got, end.want)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Errorf("%s: connection outlived the sandbox", id)
		}
		if err := end.do(id); !errors.Is(err, runtime.ErrNotFound) {
			t.Errorf("%s: second end: %v", id, err)
		}
		if err := sb.Destroy(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if h.Len() != 0 {
		t.Errorf("%d sandboxes left", h.Len())
	}
}

func TestDeadOnesAreNotAdopted(t *testing.T) {
	host := sim.NewHost(sim.Limits{})
	rt := sim.New(sim.Config{Host: host})
	for _, id := range []string{"a", "b"} {
		if _, err := rt.Create(t.Context(), runtime.Spec{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if err := rt.Close(); err != nil {
		t.Fatal(err)
	}
	if err := host.Exit("a", 0); err != nil {
		t.Fatal(err)
	}
	alive, err := sim.New(sim.Config{Host: host}).Adopt(t.Context())
	if err != nil || len(alive) != 1 || alive[0].ID() != "b" || host.Len() != 1 {
		t.Errorf("adopted %v, %v; %d on the machine", alive, err, host.Len())
	}
	host.Crash()
	<-alive[0].Done()
	if alive[0].Exit().Err == nil {
		t.Error("a crash is nobody's fault")
	}
}

func TestCapacity(t *testing.T) {
	rt := sim.New(sim.Config{Host: sim.NewHost(sim.Limits{Sandboxes: 3, MemoryBytes: 100})})
	spec := func(id string, mem int64) runtime.Spec {
		return runtime.Spec{ID: id, Resources: runtime.Resources{MemoryBytes: mem}}
	}
	a, err := rt.Create(t.Context(), spec("a", 60))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rt.Create(t.Context(), spec("b", 60)); !errors.Is(err, sim.ErrCapacity) {
		t.Errorf("too much memory: %v", err)
	}
	if err := a.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"b", "c", "d"} {
		if _, err := rt.Create(t.Context(), spec(id, 10)); err != nil {
			t.Error(err)
		}
	}
	if _, err := rt.Create(t.Context(), spec("e", 10)); !errors.Is(err, sim.ErrCapacity) {
		t.Errorf("too many: %v", err)
	}
	rt.Host().SetLimits(sim.Limits{})
	rt.Host().FailNext(runtime.ErrRootfs)
	if _, err := rt.Create(t.Context(), spec("e", 10)); !errors.Is(err, runtime.ErrRootfs) {
		t.Errorf("requested failure: %v", err)
	}
	if _, err := rt.Create(t.Context(), spec("e", 10)); err != nil {
		t.Errorf("after the requested failure: %v", err)
	}
}

func TestLatencyAndFailuresFollowTheSeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		run := func(seed uint64) (took []time.Duration, failed int) {
			rt := sim.New(sim.Config{Seed: seed, FailureRate: 0.2, Start: sim.Latency{Median: 40 * time.Millisecond, P99: 200 * time.Millisecond}})
			for i := range 1000 {
				start := time.Now()
				if _, err := rt.Create(t.Context(), runtime.Spec{ID: fmt.Sprint("sb-", i)}); errors.Is(err, sim.ErrInjected) {
					failed++
				} else if err != nil {
					t.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			return took, failed
		}
		a, failed := run(1)
		b, again := run(1)
		c, _ := run(2)
		if fmt.Sprint(a) != fmt.Sprint(b) || failed != again {
			t.Error("the same seed went another way")
		}
		if fmt.Sprint(a) == fmt.Sprint(c) {
			t.Error("another seed went the same way")
		}
		if failed < 150 || failed > 250 {
			t.Errorf("%d of 1000 failed, want about 200", failed)
		}
		below, slow := 0, 0
		for _, d := range a {
			if d <= 40*time.Millisecond {
				below++
			}
			if d > 200*time.Millisecond {
				slow++
			}
		}
		if below < 450 || below > 550 || slow < 2 || slow > 25 {
			t.Errorf("%d of 1000 below the median, %d above the 99th percentile", below, slow)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		rt := sim.New(sim.Config{Start: sim.Latency{Median: time.Hour}})
		if _, err := rt.Create(ctx, runtime.Spec{ID: "x"}); !errors.Is(err, context.DeadlineExceeded) || rt.Host().Len() != 0 {
			t.Errorf("create past its deadline: %v, %d left", err, rt.Host().Len())
		}
	})
}

func TestThousandsWithoutGoroutines(t *testing.T) {
	rt := sim.New(sim.Config{Serve: echo})
	before := goruntime.NumGoroutine()
	for i := range 30_000 {
		if _, err := rt.Create(t.Context(), runtime.Spec{ID: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if more := goruntime.NumGoroutine() - before; more > 5 {
		t.Errorf("%d goroutines for 30,000 sandboxes", more)
	}
}

// TestModel compares the runtime with a set of ids through restarts of the agent.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		host := sim.NewHost(sim.Limits{})
		rt := sim.New(sim.Config{Host: host})
		live := map[string]runtime.Sandbox{}
		ctx := context.Background()
		id := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				id := id.Draw(t, "id")
				sb, err := rt.Create(ctx, runtime.Spec{ID: id})
				if _, there := live[id]; there != errors.Is(err, runtime.ErrExists) {
					t.Fatalf("create %s: %v", id, err)
				} else if !there {
					live[id] = sb
				}
			},
			"destroy": func(t *rapid.T) {
				id := id.Draw(t, "id")
				if sb := live[id]; sb != nil {
					if err := sb.Destroy(ctx); err != nil {
						t.Fatal(err)
					}
					delete(live, id)
				}
			},
			"restart": func(t *rapid.T) {
				_ = rt.Close()
				rt = sim.New(sim.Config{Host: host})
				alive, err := rt.Adopt(ctx)
				if err != nil || len(alive) != len(live) {
					t.Fatalf("adopted %d of %d: %v", len(alive), len(live), err)
				}
				for _, sb := range alive {
					live[sb.ID()] = sb
				}
			},
			"amnesia": func(t *rapid.T) {
				_ = rt.Close()
				rt = sim.New(sim.Config{Host: host})
				removed, err := rt.Sweep(ctx)
				if err != nil || len(removed) != len(live) {
					t.Fatalf("swept %v of %d: %v", removed, len(live), err)
				}
				clear(live)
			},
			"": func(t *rapid.T) {
				if host.Len() != len(live) {
					t.Fatalf("%d on the machine, %d wanted", host.Len(), len(live))
				}
			},
		})
	})
}

// inside is a counter: what a sandbox does, and what moves with it.
type inside struct{ paused, resumed, n int }

func (i *inside) Pause()                { i.paused++ }
func (i *inside) Resume()               { i.resumed++ }
func (i *inside) Save() ([]byte, error) { return []byte{byte(i.n)}, nil }

// TestMove: what the Host knows of a sandbox and what its inside keeps are in its
// checkpoint, and each step fails on request without having done anything.
func TestMove(t *testing.T) {
	insides := map[string]*inside{"a": {n: 7}}
	rt := sim.New(sim.Config{
		Serve:  echo,
		Inside: func(id string) sim.Inside { return insides[id] },
		Load: func(s runtime.Spec, state []byte) error {
			insides[s.ID] = &inside{n: int(state[0])}
			return nil
		},
	})
	h := rt.Host()
	a, err := rt.Create(t.Context(), runtime.Spec{ID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	stats := runtime.Stats{MemoryBytes: 5, CPU: time.Second, Pids: 3}
	if err := h.SetStats("a", stats); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("on request")
	dir := t.TempDir()
	restored := runtime.Spec{ID: "b", Restore: func(context.Context) (string, error) { return dir, nil }}
	var b runtime.Sandbox
	for _, step := range []struct {
		op sim.Op
		do func() error
	}{
		{sim.OpPause, func() error { return a.Pause(t.Context()) }},
		{sim.OpCheckpoint, func() error { return a.Checkpoint(t.Context(), dir) }},
		{sim.OpCreate, func() error { b, err = rt.Create(t.Context(), restored); return err }},
		{sim.OpResume, func() error { return b.Resume(t.Context()) }},
	} {
		h.Fail(step.op, broken)
		before := fmt.Sprint(a.Paused(), h.Len(), *insides["a"])
		if err := step.do(); !errors.Is(err, broken) {
			t.Errorf("%s: %v", step.op, err)
		}
		if after := fmt.Sprint(a.Paused(), h.Len(), *insides["a"]); after != before {
			t.Errorf("%s failed, and changed %s to %s", step.op, before, after)
		}
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.op, err)
		}
	}
	if got, err := b.Stats(t.Context()); err != nil || got != stats {
		t.Errorf("stats %+v, %v", got, err)
	}
	if got := *insides["b"]; got != (inside{n: 7, resumed: 1}) {
		t.Errorf("inside %+v", got)
	}
	if got := *insides["a"]; got != (inside{n: 7, paused: 1}) || !a.Paused() {
		t.Errorf("the original's inside %+v", got)
	}
	// A simulated build that is another.
	name := dir + "/sandbox.json"
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, bytes.Replace(raw, []byte(sim.Version), []byte("sim-0"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	restored.ID = "c"
	if _, err := rt.Create(t.Context(), restored); !errors.Is(err, runtime.ErrIncompatible) || h.Len() != 2 {
		t.Errorf("restore of another version: %v", err)
	}
}
