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

// killedAgent creates sandboxes in another process and kills it.
func killedAgent(t *testing.T, cfg gvisor.Config, specs ...runtime.Spec) {
	t.Helper()
	cfg.CgroupParent = "sirocco-test/" + cfg.StateDir[len("/tmp/"):]
	a, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(specs)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", orphanCommand, string(a), string(b))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
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
