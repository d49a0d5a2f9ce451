package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The measuring commands on real sandboxes: nothing fails, what must hold does,
// and the figures and plots are there.
func TestBench(t *testing.T) {
	dir := t.TempDir()
	for _, args := range []string{
		"tti --mode burst -n 5", "tti -n 3 --cold", "churn --rate 5 --duration 2s --live 3",
		"density -n 5 --rest 1s", "tunnel --duration 1s --connections 4 --websockets 20",
	} {
		call := append([]string{"bench", "--json", "--floor", "1", "--data", up.Data(), "--out", dir}, strings.Fields(args)...)
		out, stderr, code := up.CLI(t.Context(), nil, call...)
		var r struct {
			Name  string
			Times []struct {
				Name  string
				N     int
				P50   float64
				Floor float64 `json:"floor_p50"`
			}
			Figures    []struct{ Name string }
			Invariants *struct{ Broken []string }
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 {
			t.Errorf("bench %s: exit code %d, %v: %s%s", args, code, err, out, stderr)
			continue
		}
		if r.Invariants == nil || len(r.Figures) == 0 || len(r.Times) == 0 {
			t.Errorf("bench %s: %s", args, out)
		}
		for _, d := range r.Times {
			if d.N == 0 || d.P50 <= 0 {
				t.Errorf("bench %s: %+v", args, d)
			}
		}
		for _, file := range []string{r.Name + ".json", r.Name + "-latency.svg"} {
			if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
				t.Errorf("bench %s: %v", args, err)
			}
		}
	}
}
