package gvisor_test

import (
	"context"
	"fmt"
	goruntime "runtime"
	"sync"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/hostcheck"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/gvisortest"
	"github.com/sirocco-run/sirocco/pkg/runtime/runtimetest"
)

func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) runtimetest.Harness {
		cfg := gvisor.Config{RunscPath: gvisortest.Runsc(t), StateDir: stateDir(t)}
		return runtimetest.Harness{
			Open: func(t *testing.T) runtime.Runtime { return openConfig(t, cfg) },
			Spec: func(t *testing.T, id string) runtime.Spec { return spec(t, id, "serve") },
		}
	})
}

// cycles creates, uses and destroys n sandboxes, width at a time.
func cycles(t *testing.T, rt *gvisor.Runtime, n, width int) {
	t.Helper()
	ids := make(chan int)
	var wg sync.WaitGroup
	for range width {
		wg.Go(func() {
			for i := range ids {
				sb, err := rt.Create(t.Context(), spec(t, fmt.Sprintf("sb-cycle-%d", i), "serve"))
				if err != nil {
					t.Error(err)
					continue
				}
				ask(t, sb, "env")
				if err := sb.Destroy(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		ids <- i
	}
	close(ids)
	wg.Wait()
}

// TestHundredCycles: after any number of sandboxes the machine is as before.
func TestHundredCycles(t *testing.T) {
	cfg := gvisor.Config{RunscPath: gvisortest.Runsc(t), StateDir: stateDir(t)}
	rt := openConfig(t, cfg)
	// The first one opens what a program has only once.
	cycles(t, rt, 4, 2)
	scope := hostcheck.Scope{CgroupParent: "sirocco-test/" + cfg.StateDir[len("/tmp/"):], Processes: []string{cfg.StateDir}, Folders: []string{cfg.StateDir}}
	before := hostcheck.Take(scope)
	start := time.Now()
	cycles(t, rt, 100, 3)
	t.Logf("100 cycles in %v", time.Since(start))
	// gVisor drops the os.Process of what it starts, whose descriptor the garbage
	// collector then closes.
	for deadline := time.Now().Add(20 * time.Second); ; {
		goruntime.GC()
		after := hostcheck.Take(scope)
		// Other programs' mounts come and go; openConfig looks at ours.
		delete(after, "mount")
		leaks := hostcheck.Leaks(before, after)
		if len(leaks) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %q", leaks)
		}
	}
}

func BenchmarkDial(b *testing.B) {
	sb, err := open(b).Create(b.Context(), spec(b, "sb-bench", "serve"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := sb.Destroy(context.Background()); err != nil {
			b.Error(err)
		}
	})
	ask(b, sb, "env")
	for b.Loop() {
		ask(b, sb, "env")
	}
}
