package gvisor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/gvisortest"
)

// outOfMemory is how a sandbox ends at its memory limit, whichever of its processes
// asked for the last page.
var outOfMemory = runtime.Exit{Code: 137, Signal: "SIGKILL", OOM: true}

// TestOOM: the memory limit ends the whole sandbox, and at once.
func TestOOM(t *testing.T) {
	cfg := gvisor.Config{RunscPath: gvisortest.Runsc(t), StateDir: stateDir(t)}
	rt := openConfig(t, cfg)
	_, bin := guest(t)
	root := t.TempDir()
	if err := os.Mkdir(root+"/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	folder := func(s *runtime.Spec) {
		s.Rootfs = runtime.Rootfs{Dir: root, Binds: []runtime.Bind{{Source: filepath.Dir(bin), Target: "/bin"}}}
		s.Args[0] = "/bin/guest"
	}
	for name, c := range map[string]struct {
		lines []string
		setup func(*runtime.Spec)
	}{
		"process 1":         {lines: []string{"eat"}},
		"child":             {lines: []string{"run eat"}},
		"three children":    {lines: []string{"run eat", "run eat", "run eat"}},
		"child with gofer":  {lines: []string{"run eat"}, setup: folder},
		"many small ones":   {lines: []string{"fork 150"}, setup: func(s *runtime.Spec) { s.Resources.MemoryBytes = 40 << 20 }},
		"file in memory":    {lines: []string{"write /dev/shm/big 60000000"}, setup: func(s *runtime.Spec) { s.Resources.MemoryBytes = 48 << 20 }},
		"child, small, CPU": {lines: []string{"run eat"}, setup: func(s *runtime.Spec) { s.Resources.MemoryBytes, s.Resources.CPUMillis = 64<<20, 200 }},
	} {
		t.Run(name, func(t *testing.T) {
			// What the kernel picks depends on chance.
			for range 3 {
				s := spec(t, "sb-oom", "serve")
				if c.setup != nil {
					c.setup(&s)
				}
				sb := create(t, rt, s)
				for _, line := range c.lines {
					conn := dial(t, sb)
					defer conn.Close()
					fmt.Fprintln(conn, line)
				}
				killed := firstKill(t, sb)
				if got := wait(t, sb); got != outOfMemory {
					t.Errorf("exit %+v, want out of memory", got)
				}
				// Not at some time later, when the rest of it ends too. With a fifth of a
				// processor, which the others still use, dying takes seconds.
				if took := time.Since(killed); !killed.IsZero() && took > 30*time.Second {
					t.Errorf("the sandbox ended %v after the kernel had killed one of its processes", took)
				}
				if err := sb.Destroy(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// firstKill returns when the kernel was first seen to have killed a process of the
// sandbox; zero if the sandbox had ended by then.
func firstKill(t *testing.T, sb runtime.Sandbox) time.Time {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		select {
		case <-sb.Done():
			return time.Time{}
		default:
		}
		st, err := sb.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.OOMKills > 0 {
			return time.Now()
		}
		if time.Now().After(deadline) {
			t.Fatalf("the sandbox did not reach its memory limit within a minute: %+v", st)
		}
	}
}

// TestKillIsNoOOM: a tenant may kill and be killed without that being taken for the
// memory limit.
func TestKillIsNoOOM(t *testing.T) {
	rt := open(t)
	sb := create(t, rt, spec(t, "sb-kill", "serve"))
	for line, want := range map[string]string{
		"run signal 9": "signal: killed", "run exit 137": "exit status 137", "run exit 0": "<nil>",
	} {
		if got := ask(t, sb, line); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
	if st, err := sb.Stats(t.Context()); err != nil || st.OOMKills != 0 {
		t.Errorf("stats %+v, %v", st, err)
	}
	c := dial(t, sb)
	defer c.Close()
	fmt.Fprintln(c, "exit 137")
	if got := wait(t, sb); got != (runtime.Exit{Code: 137}) {
		t.Errorf("exit %+v", got)
	}
}

// TestGuestSeesNoScore: the score that this machine gives to gVisor's process is not
// for the guest to see or to change.
func TestGuestSeesNoScore(t *testing.T) {
	rt := open(t)
	sb := create(t, rt, spec(t, "sb-score", "serve"))
	if got := ask(t, sb, "get /proc/self/oom_score_adj"); strings.TrimSpace(got) != "0" {
		t.Errorf("the guest's own score is %q", got)
	}
}
