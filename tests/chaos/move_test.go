package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// envMoveRounds says how many services are killed during moves.
const envMoveRounds = "SIROCCO_MOVE_ROUNDS"

// mover moves veterans from node to node without end.
type mover struct {
	made, calledOff, refused atomic.Int64
}

func (m *mover) run(ctx context.Context, t *testing.T, random *rand.Rand, veterans []*veteran) {
	for ctx.Err() == nil {
		v := veterans[random.IntN(len(veterans))]
		sb, err := v.Migrate(ctx, "", "")
		switch sirocco.CodeOf(err) {
		case "":
			m.made.Add(1)
			if sb.GetState() != siroccov1.State_STATE_RUNNING {
				t.Errorf("%s has moved and is %v", v.ID, sb.GetState())
			}
		case sirocco.Unavailable, sirocco.Deadline:
			m.calledOff.Add(1)
		case sirocco.NoCapacity, sirocco.FailedPrecondition: // the other node is away; it is on a move
			m.refused.Add(1)
		default:
			if ctx.Err() == nil {
				t.Errorf("move of %s: %v", v.ID, err)
			}
		}
	}
}

// Sandboxes move from node to node and back while services are killed, the two nodes
// more often than the others. Each is there once, with what it had in memory, all the
// time.
func TestServicesKilledDuringMoves(t *testing.T) {
	rounds, seed := number(t, envMoveRounds, 20), number(t, envSeed, time.Now().UnixNano())
	t.Logf("seed %d: repeat with %s=%d", seed, envSeed, seed)
	random := rand.New(rand.NewPCG(uint64(seed), 1)) //nolint:gosec // reproducible on purpose
	tr := begin(t, "moves", nil)
	web := webClient(t, tr.fleet.CA)
	for range 4 {
		v := enlist(t, tr.client)
		v.roams = true
		tr.veterans = append(tr.veterans, v)
	}
	m := &mover{}
	for round := range int(rounds) {
		ctx, stop := context.WithCancel(t.Context())
		moving := make(chan struct{})
		movers := rand.New(rand.NewPCG(random.Uint64(), 2)) //nolint:gosec // as above
		go func() {
			defer close(moving)
			m.run(ctx, t, movers, tr.veterans)
		}()
		victim := tr.fleet.Services[random.IntN(len(tr.fleet.Services))]
		if random.IntN(2) == 0 {
			victim = tr.fleet.Service(tr.fleet.Nodes[random.IntN(len(tr.fleet.Nodes))])
		}
		at, away := time.Duration(random.IntN(1000))*time.Millisecond, time.Duration(random.IntN(300))*time.Millisecond
		<-time.After(at)
		victim.Kill()
		<-time.After(away)
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		healed := time.Now()
		stop()
		<-moving
		when := fmt.Sprintf("round %d, %s killed after %v for %v", round, victim.Name, at, away)
		tr.check(t.Context(), &load{t: t}, web, when, healed)
		if t.Failed() {
			break
		}
	}
	t.Logf("%d moves made, %d called off, %d refused", m.made.Load(), m.calledOff.Load(), m.refused.Load())
	if m.made.Load() < rounds/5 {
		t.Error("too few moves were made to say anything")
	}
}
