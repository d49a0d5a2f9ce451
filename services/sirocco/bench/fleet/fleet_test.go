package fleet_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/services/sirocco/bench/fleet"
	"github.com/sirocco-run/sirocco/services/sirocco/cli"
)

// asProgram makes this test binary the command line that a measurement starts.
const asProgram = "SIROCCO_FLEET_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) == "" {
		os.Exit(m.Run())
	}
	ctx, release := program.Signals(context.Background())
	code := cli.Main(ctx, cli.Shell{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Home: os.Getenv("HOME")}, os.Args[1:])
	release()
	os.Exit(code)
}

// Every part of the measurement, in small: with real services and a real bus,
// nothing fails, nothing is lost, nothing is double.
func TestEveryPartInSmall(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(asProgram, "yes")
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	report, err := fleet.Run(ctx, fleet.Config{
		Program: self, Nodes: 5, Schedulers: 2, Live: 60, Churn: 20, Duration: 2 * time.Second,
		Lifecycles: time.Second, Weekend: 300, Surge: true, Peak: 90, SurgeTime: 2 * time.Second, Restart: true,
		Workers: 16, Retained: 100, EventBytes: 16 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK() {
		t.Errorf("failures %v (%s), lost %v, broken %v", report.Failures, report.Example, report.Lost, report.Invariants.Broken)
	}
	figures := map[string]float64{}
	for _, f := range report.Figures {
		figures[f.Name] = f.Value
	}
	for _, name := range []string{
		"lifecycles: lifecycles", "weekend: lifecycles", "filling: sandboxes made", "surge: live at the peak",
		"restart: until every node is ready", "ending: sandboxes ended", "control plane: most memory",
	} {
		if figures[name] <= 0 {
			t.Errorf("%s is %v", name, figures[name])
		}
	}
	if got := figures["surge: live at the peak"]; got != 90 {
		t.Errorf("%v live at the peak, want 90", got)
	}
	for _, times := range report.Times {
		if times.N == 0 || times.P99 <= 0 && times.Max <= 0 {
			t.Errorf("%s: %+v", times.Name, times.Distribution)
		}
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) != 0 {
		t.Errorf("it leaves %v behind, %v", left, err)
	}
}

// A region is evacuated in small: with real services and a bus for each region, no call
// fails, the region is empty, and every sandbox lives once.
func TestEvacuationInSmall(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(asProgram, "yes")
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	report, err := fleet.RunEvacuation(ctx, fleet.Evacuation{
		Program: self, Sim: true, Regions: 3, Nodes: 6, Schedulers: 2, Live: 60, Churn: 5, Gets: 10, Execs: 5,
		Over: 3 * time.Second, Before: time.Second, After: time.Second, Workers: 4, Retained: 100, EventBytes: 16 << 20,
		// Regions trust each other soon, and a busy machine is no reason to pause.
		Set: []string{"scheduler.weight-tau-in=1s", "scheduler.weight-dwell-out=1s", "scheduler.region-dead-after=30s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK() {
		t.Errorf("failures %v (%s), lost %v, broken %v", report.Failures, report.Example, report.Lost, report.Invariants.Broken)
	}
	figures := map[string]float64{}
	for _, f := range report.Figures {
		figures[f.Name] = f.Value
	}
	if figures["evacuation: moved"] < 10 || figures["live in eu at the end"] != 0 || figures["live in us at the end"]+figures["live in ap at the end"] < 60 {
		t.Errorf("moved %v, live %v, %v and %v", figures["evacuation: moved"], figures["live in eu at the end"], figures["live in us at the end"], figures["live in ap at the end"])
	}
	for _, times := range report.Times {
		if times.N == 0 {
			t.Errorf("%s was not measured", times.Name)
		}
	}
	for _, plot := range report.Plots {
		if len(plot.Lines) == 0 || len(plot.Lines[0].Points) == 0 {
			t.Errorf("nothing is drawn of %s", plot.Name)
		}
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) != 0 {
		t.Errorf("it leaves %v behind, %v", left, err)
	}
}

func TestValidateEvacuation(t *testing.T) {
	good := fleet.Evacuation{Sim: true, Regions: 3, Nodes: 3, Schedulers: 1, Live: 3, Churn: 1, Gets: 1, Execs: 1, Workers: 1}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*fleet.Evacuation){
		"real sandboxes":       func(c *fleet.Evacuation) { c.Sim = false },
		"one region":           func(c *fleet.Evacuation) { c.Regions = 1 },
		"a region without one": func(c *fleet.Evacuation) { c.Nodes = 2 },
		"nobody looks":         func(c *fleet.Evacuation) { c.Execs = 0 },
		"negative time":        func(c *fleet.Evacuation) { c.Over = -1 },
		"no workers":           func(c *fleet.Evacuation) { c.Workers = 0 },
	} {
		c := good
		spoil(&c)
		if c.Validate() == nil {
			t.Error(name + " is let through")
		}
	}
}

func TestValidate(t *testing.T) {
	good := fleet.Config{Nodes: 1, Live: 1, Workers: 1}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*fleet.Config){
		"no nodes":        func(c *fleet.Config) { c.Nodes = 0 },
		"no workers":      func(c *fleet.Config) { c.Workers = 0 },
		"negative churn":  func(c *fleet.Config) { c.Churn = -1 },
		"restart of none": func(c *fleet.Config) { c.Live, c.Restart = 0, true },
		"flat surge":      func(c *fleet.Config) { c.Surge, c.Peak = true, 1 },
	} {
		c := good
		spoil(&c)
		if c.Validate() == nil {
			t.Error(name + " is let through")
		}
	}
}
