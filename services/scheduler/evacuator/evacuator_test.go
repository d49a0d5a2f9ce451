package evacuator

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/evacuation"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

func is(state siroccov1.EvacuationState) func(*siroccov1.Evacuation) bool {
	return func(e *siroccov1.Evacuation) bool { return e.GetState() == state }
}

const (
	done       = siroccov1.EvacuationState_EVACUATION_STATE_DONE
	incomplete = siroccov1.EvacuationState_EVACUATION_STATE_INCOMPLETE
	paused     = siroccov1.EvacuationState_EVACUATION_STATE_PAUSED
	moving     = siroccov1.EvacuationState_EVACUATION_STATE_MOVING
	cancelled  = siroccov1.EvacuationState_EVACUATION_STATE_CANCELLED
)

// All sandboxes of a region go to the others, no earlier than their stage, what is new
// slides away along with them in every region, and those that may not go stay and are
// counted. A region stays closed until the order is cancelled, which gives it back what
// it had.
func TestRegionIsEvacuated(t *testing.T) {
	t.Parallel()
	w := world(t, "eu", "us", "ap")
	eu := w["eu"]
	var all []string
	for range 40 {
		all = append(all, eu.sandbox("n1"))
	}
	only := eu.sandbox("n1", "eu")
	mayUS := eu.sandbox("n2", "eu", "us")
	eu.drive("s1")
	order := eu.evacuate(&siroccov1.EvacuateRegionRequest{Over: durationpb.New(3 * time.Second)})
	words := map[float64]bool{}
	end := eu.await("", "over", func(e *siroccov1.Evacuation) bool {
		allowed := int64(math.Ceil(e.GetStages()[e.GetStage()] * 41))
		if begun := e.GetMoved() + e.GetUnderWay(); begun > allowed {
			t.Errorf("%d begun in stage %d, %d are allowed", begun, e.GetStage(), allowed)
		}
		words[w["us"].word("eu")] = true
		return evacuation.Over(e)
	})
	if end.GetState() != incomplete || end.GetMoved() != 41 || end.GetHere() != 1 || end.GetFailed() != 0 || len(end.GetLeft()) != 1 ||
		end.GetLeft()[0].GetCount() != 1 || !strings.Contains(end.GetLeft()[0].GetReason(), "eu only") {
		t.Errorf("it ended as %v", end)
	}
	if took := end.GetEnded().AsTime().Sub(order.GetBegun().AsTime()); took < 2*time.Second || took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	if p := end.GetPauseP99().AsDuration(); p != 100*time.Millisecond {
		t.Errorf("p99 of the pauses: %v", p)
	}
	if len(words) < 3 {
		t.Errorf("us was told %v of eu, want three stages at least", words)
	}
	went := map[string]int{}
	for _, id := range append(all, mayUS) {
		sb, err := eu.store.Get(t.Context(), tenant, id)
		if err != nil {
			t.Fatal(err)
		}
		went[sb.GetPlacement().GetRegion()]++
		if id == mayUS && sb.GetPlacement().GetRegion() != "us" {
			t.Errorf("one that may run in eu and us only went to %s", sb.GetPlacement().GetRegion())
		}
	}
	if went["eu"] != 0 || went["us"] < 5 || went["ap"] < 5 {
		t.Errorf("they went to %v", went)
	}
	if sb, err := eu.store.Get(t.Context(), tenant, only); err != nil || sb.GetPlacement().GetRegion() != "eu" || sb.GetMove() != nil {
		t.Errorf("the one that may not go: %v, %v", sb, err)
	}
	eventually(t, "eu is closed everywhere", func() bool { return eu.word("eu") == 0 && w["us"].word("eu") == 0 && w["ap"].word("eu") == 0 })
	if _, err := eu.orders.Change(t.Context(), "eu", "", func(e *siroccov1.Evacuation) error { return evacuation.Cancel(e, time.Now()) }); err != nil {
		t.Fatal(err)
	}
	eu.await("", "cancelled", is(cancelled))
	for name, r := range w {
		if got := r.word("eu"); got != -1 {
			t.Errorf("%s was told %v of eu, and was not told that it is over", name, got)
		}
	}
}

// Too many failures pause a stage and say why; it goes on when somebody says so, and the
// sandboxes are tried again.
func TestFailuresPauseIt(t *testing.T) {
	t.Parallel()
	w := world(t, "eu", "us")
	eu := w["eu"]
	for range 30 {
		eu.sandbox("n1")
	}
	bad := true
	eu.verdict = func(id, _ string) (time.Duration, string, bool) {
		if !bad {
			return 0, "", false
		}
		// Half of them by the record, half by a refusal.
		return 0, "no room in us", id[len(id)-1]%2 == 0
	}
	eu.drive("s1")
	eu.evacuate(&siroccov1.EvacuateRegionRequest{Over: durationpb.New(time.Second), AtOnce: 4})
	e := eu.await("", "paused", is(paused))
	if !strings.Contains(e.GetWhy(), "moves failed") || !strings.Contains(e.GetWhy(), "no room in us") || e.GetStage() != 0 || e.GetMoved() != 0 {
		t.Errorf("it pauses as %v", e)
	}
	tried := map[string]bool{}
	for _, key := range eu.keys() {
		_, id, _, err := evacuation.ParseKey(key)
		if err != nil {
			t.Fatal(err)
		}
		tried[id] = true
	}
	if len(tried) > 6 { // 20 % of 30
		t.Errorf("%d were tried in the first stage", len(tried))
	}
	if got := w["us"].word("eu"); got != 0.8 {
		t.Errorf("eu's weight is %v in the first stage", got)
	}
	eu.mu.Lock()
	bad = false
	eu.mu.Unlock()
	if _, err := eu.orders.Change(t.Context(), "eu", "", func(e *siroccov1.Evacuation) error { return evacuation.Resume(e, time.Now()) }); err != nil {
		t.Fatal(err)
	}
	if e := eu.await("", "over", evacuation.Over); e.GetState() != done || e.GetMoved() != 30 || e.GetFailed() < 2 {
		t.Errorf("it ended as %v", e)
	}
}

// Moves that take too long pause it too.
func TestSlownessPausesIt(t *testing.T) {
	t.Parallel()
	eu := world(t, "eu", "us")["eu"]
	for range 20 {
		eu.sandbox("n1")
	}
	eu.verdict = func(string, string) (time.Duration, string, bool) { return 3 * time.Second, "", false }
	eu.drive("s1")
	eu.evacuate(&siroccov1.EvacuateRegionRequest{Over: durationpb.New(time.Second)})
	e := eu.await("", "paused", is(paused))
	if !strings.Contains(e.GetWhy(), "for more than 2s") || e.GetMoved() > 4 || e.GetSlow() < 2 {
		t.Errorf("it pauses as %v", e)
	}
}

// A driver that ends in the middle is followed by one that goes on: each sandbox is
// moved once, and counted once.
func TestAnotherDriverGoesOn(t *testing.T) {
	t.Parallel()
	eu := world(t, "eu", "us")["eu"]
	for range 60 {
		eu.sandbox("n1")
	}
	stop := eu.drive("s1")
	eu.evacuate(&siroccov1.EvacuateRegionRequest{Over: durationpb.New(4 * time.Second)})
	eu.await("", "half way", func(e *siroccov1.Evacuation) bool { return e.GetMoved() > 15 })
	stop()
	eu.drive("s2")
	e := eu.await("", "over", evacuation.Over)
	if e.GetState() != done || e.GetMoved() != 60 || e.GetFailed() != 0 || e.GetPauses() != 0 {
		t.Errorf("it ended as %v", e)
	}
	for id, n := range eu.moved {
		if n != 1 {
			t.Errorf("%s was moved %d times", id, n)
		}
	}
}

// The commands of an evacuation, sent again, move nothing again.
func TestReplayMovesNothing(t *testing.T) {
	t.Parallel()
	w := world(t, "eu", "us")
	eu := w["eu"]
	for range 10 {
		eu.sandbox("n1")
	}
	eu.drive("s1")
	eu.evacuate(&siroccov1.EvacuateRegionRequest{Over: durationpb.New(0)})
	eu.await("", "over", is(done))
	keys := eu.keys()
	for _, key := range keys {
		_, id, _, err := evacuation.ParseKey(key)
		if err != nil {
			t.Fatal(err)
		}
		body, err := proto.Marshal(&siroccov1.MigrateSandboxRequest{Id: id, Region: "us"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := eu.js.Publish(t.Context(), subject.Command(tenant, subject.VerbMigrate, key), body); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "they were taken again", func() bool { return len(eu.keys()) == 2*len(keys) })
	eu.mu.Lock()
	defer eu.mu.Unlock()
	for id, n := range eu.moved {
		if n != 1 {
			t.Errorf("%s was moved %d times", id, n)
		}
	}
}

// A cancelled order asks for no move any more, and the region has its weight back.
func TestCancelInTheMiddle(t *testing.T) {
	t.Parallel()
	w := world(t, "eu", "us")
	eu := w["eu"]
	for range 50 {
		eu.sandbox("n1")
	}
	eu.drive("s1")
	eu.evacuate(&siroccov1.EvacuateRegionRequest{Over: durationpb.New(20 * time.Second)})
	eu.await("", "under way", func(e *siroccov1.Evacuation) bool { return e.GetMoved() > 2 })
	if _, err := eu.orders.Change(t.Context(), "eu", "", func(e *siroccov1.Evacuation) error { return evacuation.Cancel(e, time.Now()) }); err != nil {
		t.Fatal(err)
	}
	e := eu.await("", "cancelled", is(cancelled))
	if e.GetMoved() > 40 || e.GetHere() != 50-e.GetMoved() || int64(len(slices.Compact(eu.keys()))) != e.GetMoved() {
		t.Errorf("%d commands, %v", len(eu.keys()), e)
	}
	if eu.word("eu") != -1 || w["us"].word("eu") != -1 {
		t.Errorf("told of eu: %v, %v", eu.word("eu"), w["us"].word("eu"))
	}
}

// A drain moves within the region, and what can't be moved gets its notice at the
// deadline, not before.
func TestNodeIsDrained(t *testing.T) {
	t.Parallel()
	eu := world(t, "eu")["eu"]
	for range 12 {
		eu.sandbox("n1")
	}
	stuck, other := eu.sandbox("n1"), eu.sandbox("n2")
	eu.verdict = func(id, _ string) (time.Duration, string, bool) {
		return 0, map[bool]string{true: "its processor is another"}[id == stuck], false
	}
	bucket, err := eu.js.KeyValue(t.Context(), subject.BucketNodeOrders)
	if err != nil {
		t.Fatal(err)
	}
	value, err := proto.Marshal(&siroccov1.Node{Name: "n1", Region: "eu", Cordoned: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Put(t.Context(), subject.NodeKey("eu", "n1"), value); err != nil {
		t.Fatal(err)
	}
	orders := func() *siroccov1.Node {
		entry, err := bucket.Get(t.Context(), subject.NodeKey("eu", "n1"))
		if err != nil {
			t.Fatal(err)
		}
		n := &siroccov1.Node{}
		if err := proto.Unmarshal(entry.Value(), n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eu.drive("s1")
	rate := 1.0
	order, err := evacuation.OfNode(&siroccov1.DrainNodeRequest{
		Name: "n1", Over: durationpb.New(time.Second), MaxErrorRate: &rate, EvictAfter: durationpb.New(12 * time.Second),
	}, "eu", "ops", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := eu.orders.Order(t.Context(), order); err != nil {
		t.Fatal(err)
	}
	e := eu.await("n1", "waiting", is(siroccov1.EvacuationState_EVACUATION_STATE_WAITING))
	if e.GetMoved() != 12 || e.GetHere() != 1 || e.GetFailed() != maxAttempts || orders().GetDraining() {
		t.Errorf("it waits with %v, %v", e, orders())
	}
	eu.await("n1", "evicting", is(siroccov1.EvacuationState_EVACUATION_STATE_EVICTING))
	eventually(t, "the node is told to give notice", func() bool { return orders().GetDraining() })
	// The sandbox ends, as its node would have it.
	if err := eu.end(stuck); err != nil {
		t.Fatal(err)
	}
	if e := eu.await("n1", "over", evacuation.Over); e.GetState() != done || e.GetHere() != 0 {
		t.Errorf("it ended as %v", e)
	}
	if sb, err := eu.store.Get(t.Context(), tenant, other); err != nil || sb.GetMove() != nil {
		t.Errorf("on the other node: %v, %v", sb, err)
	}
}
