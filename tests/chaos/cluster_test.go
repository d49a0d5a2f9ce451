package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/tests/platform"
)

// envFaults lets only faults happen whose name holds it.
const envFaults = "SIROCCO_CHAOS_FAULTS"

// clusterRounds is how many rounds there are without envRounds: each fault once.
const clusterRounds = 12

// outlivedWithin is after how long sandboxes can be made again while a fault goes on that is
// outlived: services find another server within 18 s, and streams that lead where they are
// cut off find another leader within 20 s.
const outlivedWithin = time.Minute

// busDisk is what each NATS server has for its streams, in bytes.
const busDisk = 512 << 20

// Each round lets one thing of a region with three NATS servers go wrong under load,
// for some seconds. Meanwhile, sandboxes that it does not concern go on; afterwards
// everything must hold, within the time that the platform promises.
func TestClusterUnderLoad(t *testing.T) {
	rounds, seed := int(number(t, envRounds, clusterRounds)), number(t, envSeed, time.Now().UnixNano())
	t.Logf("seed %d: repeat with %s=%d", seed, envSeed, seed)
	tr := beginWith(t, "clust", platform.FleetOptions{
		Servers: 3, Faults: true,
		Disks: map[string]int64{"bus-1": busDisk, "bus-2": busDisk, "bus-3": busDisk},
		Flags: platform.Flags{"node-agent": {"--faults"}},
	})
	a := &arena{trial: tr, random: rand.New(rand.NewPCG(uint64(seed), 0)), web: webClient(t, tr.fleet.CA)} //nolint:gosec // reproducible on purpose
	for range 4 {
		tr.veterans = append(tr.veterans, enlist(t, tr.client))
	}
	for _, v := range tr.veterans {
		if why := v.serves(t.Context(), a.web); why != "" {
			t.Fatal(why)
		}
	}
	l := &load{t: t, fleet: tr.fleet, client: tr.client, ids: map[string]string{}}
	ctx, stop := context.WithCancel(context.Background())
	wait := l.run(ctx, 3)
	defer func() { stop(); wait() }()
	began := time.Now()
	var all, deck []fault
	for _, f := range faults {
		if strings.Contains(f.name, os.Getenv(envFaults)) {
			all = append(all, f)
		}
	}
	if len(all) == 0 {
		t.Fatalf("%s=%q is in no name of a fault", envFaults, os.Getenv(envFaults))
	}
	for round := range rounds {
		if len(deck) == 0 {
			deck = append(deck, all...)
			a.random.Shuffle(len(deck), func(i, k int) { deck[i], deck[k] = deck[k], deck[i] })
		}
		a.round(ctx, l, fmt.Sprintf("round %d", round), deck[0])
		deck = deck[1:]
		if t.Failed() {
			break
		}
	}
	t.Logf("%d rounds in %v: %v", rounds, time.Since(began).Round(time.Second), l)
	if l.created.Load() < int64(rounds) || l.execs.Load() == 0 || l.published.Load() == 0 {
		t.Errorf("that is no load: %v", l)
	}
}

// round lets one fault happen and heal, and checks that everything holds then.
func (a *arena) round(ctx context.Context, l *load, when string, f fault) {
	a.Helper()
	at, length := time.Duration(a.random.IntN(300))*time.Millisecond, f.least+time.Duration(a.random.Int64N(int64(f.most-f.least)))
	<-time.After(at)
	asked, cancel := context.WithTimeout(ctx, 20*time.Second)
	whom, heal, err := f.begin(asked, a)
	cancel()
	when = fmt.Sprintf("%s, %s: %s, for %v", when, f.name, whom, length.Round(time.Millisecond))
	if err != nil {
		a.Errorf("%s: %v", when, err)
	}
	if heal == nil {
		return
	}
	over := time.After(length)
	for looks := true; looks && !a.Failed(); {
		a.spared(ctx, when, f, whom)
		select {
		case <-over:
			looks = false
		case <-time.After(200 * time.Millisecond):
		}
	}
	if f.outlived {
		if err := platform.Poll(outlivedWithin-length, func() string { return a.makes(ctx) }); err != nil {
			a.Errorf("%s: still no sandbox could be made: %v", when, err)
		}
	}
	if err := heal(); err != nil {
		a.Errorf("%s: heal: %v", when, err)
		return
	}
	healed := time.Now()
	l.gate.Lock()
	defer l.gate.Unlock()
	paused := time.Since(healed)
	a.holds(ctx, a.web, when, healed)
	a.answered(ctx, l, when, healed)
	a.Logf("%s: calls in flight were answered %v later, and all was well after %v", when, paused.Round(10*time.Millisecond), time.Since(healed).Round(10*time.Millisecond))
}

// makes says why no sandbox can be made, and ended; "" if one can.
func (a *arena) makes(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := a.client.Create(ctx, &siroccov1.CreateSandboxRequest{})
	if err == nil {
		_, err = s.Terminate(ctx, "")
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// spared checks that what the fault does not concern goes on.
func (a *arena) spared(ctx context.Context, when string, f fault, whom string) {
	a.Helper()
	for _, v := range a.veterans {
		if f.spares != nil && !f.spares(v, whom) {
			continue
		}
		if why := v.serves(ctx, a.web); why != "" {
			a.Errorf("%s: meanwhile: %s", when, why)
		}
	}
}

// answered checks that of each command that the bus took there is a record. The load
// is paused.
func (a *arena) answered(ctx context.Context, l *load, when string, healed time.Time) {
	a.Helper()
	if err := platform.Poll(settle-time.Since(healed), func() string {
		records, err := a.region.Records(ctx)
		if err != nil {
			return err.Error()
		}
		return strings.Join(l.unanswered(records), "\n")
	}); err != nil {
		a.Errorf("%s: %v", when, err)
	}
}
