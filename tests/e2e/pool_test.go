package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// TestDeclaredPool: sandboxes of a declared template come warm, each its own; others
// don't; and what is declared away is given up.
func TestDeclaredPool(t *testing.T) {
	t.Parallel()
	const memory = 200 << 20 // nobody else's template
	cli(t, 0, "pool", "set", "e2e", "--memory", "200Mi", "--warm", "3", "--max", "3")
	t.Cleanup(func() { up.CLI(t.Context(), nil, "pool", "rm", "e2e") })
	ready := func() string {
		var list []struct {
			Name  string
			Nodes []struct{ Ready int }
		}
		if err := json.Unmarshal([]byte(cli(t, 0, "pool", "ls", "--json")), &list); err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			if p.Name == "e2e" && len(p.Nodes) == 1 {
				return strings.Repeat("w", p.Nodes[0].Ready)
			}
		}
		return ""
	}
	spec := func() *siroccov1.CreateSandboxRequest {
		return &siroccov1.CreateSandboxRequest{
			Env: map[string]string{"WHO": "me"}, Resources: &siroccov1.Resources{MemoryLimitBytes: memory},
		}
	}
	names := map[string]bool{}
	// As many as there are at first: what a node reports may be a moment old.
	eventually(t, ready, "www")
	for range 3 {
		s := create(t, spec())
		sb, err := client(t).Get(t.Context(), s.ID)
		if err != nil {
			t.Fatal(err)
		}
		if !sb.GetObserved().GetWarm() {
			t.Errorf("%s was not warm", s.ID)
		}
		for _, e := range sb.GetHistory() {
			if e.GetState() == siroccov1.State_STATE_STARTING {
				t.Errorf("%s was starting although it was warm", s.ID)
			}
		}
		// It knows its own name and nobody else's, and has what was asked for.
		if out := sh(t, s, "uname -n; cat /etc/hostname; echo $WHO; ls /tmp; echo here > /tmp/mark"); out != s.ID+"\n"+s.ID+"\nme" || names[s.ID] {
			t.Errorf("%s: %q", s.ID, out)
		}
		names[s.ID] = true
		if _, err := s.Terminate(t.Context(), "done"); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, ready, "www")
	cli(t, 0, "pool", "rm", "e2e")
	cli(t, 3, "pool", "rm", "e2e")
	if out := cli(t, 0, "pool", "ls"); strings.Contains(out, "e2e ") {
		t.Errorf("it is still listed: %s", out)
	}
}
