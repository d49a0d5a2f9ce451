package bench

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

func report() *Report {
	r := &Report{Name: "trial", About: "two of them", Seconds: 3, Plots: []Plot{{Name: "live", Title: "Live"}}}
	r.Time("create", []Sample{{Took: 40 * time.Millisecond}, {Took: 60 * time.Millisecond}}, 20)
	r.Figure("memory", 12.345, "MiB", 0)
	r.Invariants = &Verdict{Checked: "records"}
	return r
}

func TestReportIsPrinted(t *testing.T) {
	r := report()
	var out bytes.Buffer
	if err := r.Print(&out); err != nil || !r.OK() {
		t.Fatalf("%v, %v", err, r.OK())
	}
	for _, want := range []string{"trial: two of them", "40", "2.00", "12.3", "invariants hold: records"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestReportIsNotOK(t *testing.T) {
	for name, spoil := range map[string]func(*Report){
		"failed: 1 with quota": func(r *Report) { r.Failures = map[string]int{"quota": 1} },
		"lost: sb-1":           func(r *Report) { r.Lost = []string{"sb-1"} },
		"broken: an orphan":    func(r *Report) { r.Invariants.Broken = []string{"an orphan"} },
	} {
		r := report()
		spoil(r)
		var out bytes.Buffer
		if err := r.Print(&out); err != nil || r.OK() || !strings.Contains(out.String(), name) {
			t.Errorf("%s: %v, %v in\n%s", name, err, r.OK(), out.String())
		}
	}
}

func TestReportIsWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "benchmarks")
	if err := report().Write(dir); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "trial.json"))
	var r Report
	if err != nil || json.Unmarshal(raw, &r) != nil || r.Times[0].P99 != 60 || r.Times[0].Floor != 20 {
		t.Errorf("%v: %s", err, raw)
	}
	if svg, err := os.ReadFile(filepath.Join(dir, "trial-live.svg")); err != nil || !bytes.HasPrefix(svg, []byte("<svg")) {
		t.Errorf("%v: %s", err, svg)
	}
}

func TestProgressIsOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var terminal, file bytes.Buffer
		for _, p := range []*Progress{NewProgress(&terminal, true), NewProgress(&file, false), nil} {
			for i := range 1000 {
				p.Say("%d of 1000", i+1)
				<-time.After(10 * time.Millisecond)
			}
			p.Done()
			p.Done()
		}
		if n := strings.Count(terminal.String(), "\n"); n != 1 || !strings.HasSuffix(strings.TrimSpace(terminal.String()), "1000 of 1000") {
			t.Errorf("%d lines on the terminal: %q", n, terminal.String())
		}
		if n := strings.Count(file.String(), "\n"); n != 2 || strings.Contains(file.String(), "\r") || !strings.Contains(file.String(), "1000 of 1000\n") {
			t.Errorf("%d lines in the file: %q", n, file.String())
		}
	})
}

// No request with --cold has the template of another, in one measurement.
func TestExoticRequestsDiffer(t *testing.T) {
	e := newExotic()
	seen := map[int64]bool{}
	req := &siroccov1.CreateSandboxRequest{}
	for i := range 10_000 {
		limit := e.request(req, i).GetResources().GetMemoryLimitBytes()
		if seen[limit] || limit <= memoryDefault || limit > memoryDefault+64<<20 || limit%pageBytes != 0 {
			t.Fatalf("request %d has the limit %d", i, limit)
		}
		seen[limit] = true
	}
	if req.Resources != nil {
		t.Error("the request itself was changed")
	}
}

func TestParseTimes(t *testing.T) {
	own, children, ok := parseTimes("12 (a (b) c) S 1 12 12 0 -1 4194304 1 2 3 4 150 50 1000 20 20 0 9 0 100")
	if !ok || own != 2*time.Second || children != 10200*time.Millisecond {
		t.Errorf("%v, %v, %v", own, children, ok)
	}
}

func FuzzParseTimes(f *testing.F) {
	f.Add("12 (a) S 1 12 12 0 -1 4194304 1 2 3 4 150 50 1000 20 20 0 9 0 100")
	f.Fuzz(func(_ *testing.T, line string) { parseTimes(line) })
}
