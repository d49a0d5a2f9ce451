// Package chaos kills services of a real region under load, each a process of
// its own, and checks after each time what must always hold.
package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/hostcheck"
	"github.com/sirocco-run/sirocco/pkg/invariants"
	"github.com/sirocco-run/sirocco/pkg/rundir"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/sirocco-run/sirocco/tests/platform"
)

// Environment of the test.
const (
	envRounds = "SIROCCO_CHAOS_ROUNDS"
	envSeed   = "SIROCCO_CHAOS_SEED"
)

// settle is the promise: so long after the last fault has healed all is well.
const settle = 60 * time.Second

func number(t *testing.T, name string, def int64) int64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return def
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// trial is a region under test.
type trial struct {
	*testing.T
	fleet    *platform.Fleet
	client   *sirocco.Client
	region   *invariants.Region
	nodes    []invariants.Node
	veterans []*veteran
	before   []hostcheck.Snapshot
}

func begin(t *testing.T, name string, more platform.Flags) *trial {
	t.Helper()
	return beginWith(t, name, platform.FleetOptions{Flags: more})
}

func beginWith(t *testing.T, name string, opts platform.FleetOptions) *trial {
	t.Helper()
	fleet, err := platform.StartFleetWith(name, opts)
	if err != nil {
		t.Fatal(err)
	}
	tr := &trial{T: t, fleet: fleet}
	for _, n := range fleet.Nodes {
		node := invariants.Node{Name: n, RunDir: rundir.Of(n)}
		tr.nodes = append(tr.nodes, node)
		tr.before = append(tr.before, hostcheck.Take(invariants.Scope(node)))
	}
	if tr.client, err = fleet.Client(); err != nil {
		t.Fatal(err)
	}
	if tr.region, err = invariants.New(t.Context(), fleet.NC, tr.nodes); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.end)
	return tr
}

// end ends every sandbox, checks that nothing is left, and ends the region.
func (tr *trial) end() {
	defer tr.client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	for sb, err := range tr.client.List(ctx, nil) {
		if err != nil {
			tr.Error(err)
			break
		}
		if _, err := tr.client.Sandbox(sb.GetId()).TerminateWith(ctx, &siroccov1.TerminateSandboxRequest{NoWait: true}); err != nil {
			tr.Error(err)
		}
	}
	if err := platform.Poll(settle, func() string { return strings.Join(tr.region.Broken(ctx), "\n") }); err != nil {
		tr.Errorf("with every sandbox ended: %v", err)
	}
	keep := os.Getenv("SIROCCO_TEST_LOG")
	if tr.Failed() && keep != "" {
		for _, p := range tr.fleet.Services {
			_ = os.WriteFile(keep+"."+p.Name, []byte(p.LogTail(8<<20)), 0o600)
		}
	}
	if err := tr.fleet.Stop(); err != nil {
		tr.Error(err)
	}
	// Agents that end in order take their warm cells with them.
	if err := platform.Poll(settle, func() string {
		var left []string
		for i, n := range tr.nodes {
			left = append(left, hostcheck.Leaks(tr.before[i], hostcheck.Take(invariants.Scope(n)))...)
		}
		return strings.Join(sandboxLeaks(left), "\n")
	}); err != nil {
		tr.Errorf("left on the machine: %v, %v", err, tr.fleet.Wreck())
	}
}

// sandboxLeaks leaves out what belongs to this process.
func sandboxLeaks(leaks []string) []string {
	var out []string
	for _, l := range leaks {
		if !strings.HasPrefix(l, "fd:") && !strings.HasPrefix(l, "zombie:") {
			out = append(out, l)
		}
	}
	return out
}

// Each round kills one process at a random point under load and starts it again
// at once or a little later. Then the load pauses and everything must hold.
func TestServicesKilledUnderLoad(t *testing.T) {
	rounds, seed := number(t, envRounds, 100), number(t, envSeed, time.Now().UnixNano())
	t.Logf("seed %d: repeat with %s=%d", seed, envSeed, seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0)) //nolint:gosec // reproducible on purpose
	tr := begin(t, "chaos", nil)
	web := webClient(t, tr.fleet.CA)
	for range 4 {
		tr.veterans = append(tr.veterans, enlist(t, tr.client))
	}
	l := &load{t: t, fleet: tr.fleet, client: tr.client, ids: map[string]string{}}
	ctx, stop := context.WithCancel(context.Background())
	wait := l.run(ctx, 3)
	defer func() { stop(); wait() }()
	began := time.Now()
	for round := range int(rounds) {
		victim := tr.fleet.Services[random.IntN(len(tr.fleet.Services))]
		at, away := time.Duration(random.IntN(300))*time.Millisecond, time.Duration(random.IntN(200))*time.Millisecond
		<-time.After(at)
		victim.Kill()
		if victim.Name == "bus" {
			// Whatever runs goes on without it.
			for _, v := range tr.veterans[:1] {
				if why := v.serves(ctx, web); why != "" {
					t.Errorf("round %d: with the bus away: %s", round, why)
				}
			}
		}
		<-time.After(away)
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		healed := time.Now()
		tr.check(ctx, l, web, fmt.Sprintf("round %d, %s killed after %v for %v", round, victim.Name, at, away), healed)
		if t.Failed() {
			break
		}
	}
	t.Logf("%d rounds in %v: %v", rounds, time.Since(began).Round(time.Second), l)
	if l.created.Load() < rounds || l.published.Load() == 0 {
		t.Errorf("that is no load: %v", l)
	}
}

// check waits until all invariants hold, with the load paused.
func (tr *trial) check(ctx context.Context, l *load, web *http.Client, when string, healed time.Time) {
	tr.Helper()
	l.gate.Lock()
	defer l.gate.Unlock()
	tr.holds(ctx, web, when, healed)
}

// holds waits until all invariants hold, for as long after the last fault as promised.
func (tr *trial) holds(ctx context.Context, web *http.Client, when string, healed time.Time) {
	tr.Helper()
	if why := tr.serviceGone(); why != "" {
		tr.Errorf("%s: %s", when, why)
		return
	}
	for _, v := range tr.veterans {
		if err := platform.Poll(settle-time.Since(healed), func() string { return v.serves(ctx, web) }); err != nil {
			tr.Errorf("%s: %v", when, err)
			return
		}
		patience := time.Duration(0)
		if v.roams {
			patience = settle - time.Since(healed)
		}
		if err := platform.Poll(patience, func() string { return v.same(ctx, tr.client) }); err != nil {
			tr.Errorf("%s: %v", when, err)
		}
	}
	if err := platform.Poll(settle-time.Since(healed), func() string { return strings.Join(tr.region.Broken(ctx), "\n") }); err != nil {
		tr.Errorf("%s: %v", when, err)
	}
}

// serviceGone says which service has ended without having been killed.
func (tr *trial) serviceGone() string {
	for _, p := range tr.fleet.Services {
		if !p.Running() {
			return p.Name + " has ended by itself: " + p.LogTail(2000)
		}
	}
	return ""
}
