package gvisor_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/gvisortest"
)

// orphanCommand makes the test program an agent that creates sandboxes and waits
// to be killed.
const orphanCommand = "orphan"

func orphan(args []string) {
	var cfg gvisor.Config
	var specs []runtime.Spec
	for i, v := range []any{&cfg, &specs} {
		if err := json.Unmarshal([]byte(args[i]), v); err != nil {
			panic(err)
		}
	}
	rt, err := gvisor.New(cfg)
	if err != nil {
		panic(err)
	}
	for _, s := range specs {
		if _, err := rt.Create(context.Background(), s); err != nil {
			panic(err)
		}
	}
	fmt.Println("ready")
	select {}
}

// busyCommand makes the test program an agent that creates sandboxes without end, and
// waits to be killed.
const busyCommand = "busy"

func busy(args []string) {
	var cfg gvisor.Config
	var s runtime.Spec
	for i, v := range []any{&cfg, &s} {
		if err := json.Unmarshal([]byte(args[i]), v); err != nil {
			panic(err)
		}
	}
	rt, err := gvisor.New(cfg)
	if err != nil {
		panic(err)
	}
	for user := range 4 {
		go func() {
			for n := 0; ; n++ {
				one := s
				one.ID = fmt.Sprintf("%s-%d-%d-%02d", s.ID, os.Getpid(), user, n%100)
				sb, err := rt.Create(context.Background(), one)
				if err != nil {
					panic(err)
				}
				fmt.Println("ready")
				if err := sb.Destroy(context.Background()); err != nil {
					panic(err)
				}
			}
		}()
	}
	select {}
}

// TestKilledWhileStarting: the agent that follows one which was killed amid its starts
// finds nothing that still starts, and removes what is left.
func TestKilledWhileStarting(t *testing.T) {
	cfg := gvisor.Config{RunscPath: gvisortest.Runsc(t), StateDir: stateDir(t)}
	parent := cfg
	parent.CgroupParent = "sirocco-test/" + cfg.StateDir[len("/tmp/"):]
	for range 5 {
		cmd, first := agentProcess(t, busyCommand, parent, spec(t, "sb-busy", "serve"))
		if _, err := first.ReadString('\n'); err != nil {
			t.Fatalf("agent: %v", err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		rt, err := gvisor.New(parent)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rt.Adopt(t.Context()); err != nil {
			t.Fatal(err)
		}
		removed, err := rt.Sweep(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("swept: %v", removed)
		if err := rt.Close(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
	rt := openConfig(t, cfg) // it checks, at the end, that nothing is left
	sandboxes, err := rt.Adopt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range sandboxes {
		if err := sb.Destroy(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// agentProcess starts the test program as an agent and returns what it prints.
func agentProcess(t *testing.T, command string, values ...any) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	args := []string{command}
	for _, v := range values {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, string(b))
	}
	cmd := exec.Command("/proc/self/exe", args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

// killedAgent creates sandboxes in another process and kills it.
func killedAgent(t *testing.T, cfg gvisor.Config, specs ...runtime.Spec) {
	t.Helper()
	cfg.CgroupParent = "sirocco-test/" + cfg.StateDir[len("/tmp/"):]
	cmd, out := agentProcess(t, orphanCommand, cfg, specs)
	if _, err := out.ReadString('\n'); err != nil {
		t.Fatalf("agent: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The end of its output comes at once: no sandbox holds it.
	_ = cmd.Wait()
}

func TestAdopt(t *testing.T) {
	cfg := gvisor.Config{RunscPath: gvisortest.Runsc(t), StateDir: stateDir(t)}
	killedAgent(t, cfg, spec(t, "sb-a", "serve"), spec(t, "sb-b", "serve"), spec(t, "sb-c", "exit", "3"), spec(t, "sb-d", "serve"), spec(t, "sb-e", "serve"), spec(t, "sb-f", "serve"))
	rt := openConfig(t, cfg)
	alive, err := rt.Adopt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byID := map[string]runtime.Sandbox{}
	for _, sb := range alive {
		byID[sb.ID()] = sb
	}
	if len(byID) != 5 || byID["sb-c"] != nil {
		t.Fatalf("adopted %v", byID)
	}
	t.Log(ask(t, byID["sb-a"], "env"))
	// The end of a process that is no child of ours, in every way there is.
	c := dial(t, byID["sb-a"])
	fmt.Fprintln(c, "exit 5")
	if got := wait(t, byID["sb-a"]); got != (runtime.Exit{Code: 5}) {
		t.Errorf("exit of an adopted sandbox: %+v", got)
	}
	c.Close()
	c = dial(t, byID["sb-d"])
	fmt.Fprintln(c, "eat")
	if got := wait(t, byID["sb-d"]); !got.OOM {
		t.Errorf("exit of an adopted sandbox at its memory limit: %+v", got)
	}
	c.Close()
	c = dial(t, byID["sb-f"])
	fmt.Fprintln(c, "run eat")
	if got := wait(t, byID["sb-f"]); got != outOfMemory {
		t.Errorf("exit of an adopted sandbox, a process of which reached the memory limit: %+v", got)
	}
	c.Close()
	// Another agent can take over while this one lives on, once it has let go.
	if err := rt.Close(); err != nil {
		t.Fatal(err)
	}
	rt = openConfig(t, cfg)
	alive, err = rt.Adopt(t.Context())
	if err != nil || len(alive) != 2 {
		t.Fatalf("adopted %v, %v", alive, err)
	}
	for _, sb := range alive {
		ask(t, sb, "env")
		if err := sb.Destroy(t.Context()); err != nil {
			t.Error(err)
		}
		wait(t, sb)
	}
}

func TestSweepAfterKill(t *testing.T) {
	cfg := gvisor.Config{RunscPath: gvisortest.Runsc(t), StateDir: stateDir(t)}
	killedAgent(t, cfg, spec(t, "sb-x", "serve"), spec(t, "sb-y", "serve"))
	rt := openConfig(t, cfg)
	mine := create(t, rt, spec(t, "sb-mine", "serve"))
	removed, err := rt.Sweep(t.Context())
	if err != nil || len(removed) == 0 {
		t.Fatalf("swept %v, %v", removed, err)
	}
	t.Log(removed)
	ask(t, mine, "env")
}
