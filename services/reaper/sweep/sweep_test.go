package sweep

import (
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const life = 5 * time.Minute

// at returns a record that has taken the steps, one second apart.
func at(t testing.TB, steps ...lifecycle.Step) *siroccov1.Sandbox {
	t.Helper()
	sb := lifecycle.Accept("sb-x", "acme", "k", &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(life)}, t0)
	for i, s := range steps {
		var err error
		if sb, err = lifecycle.Apply(sb, s, t0.Add(time.Duration(i+1)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return sb
}

var (
	place = lifecycle.Place{Node: "n", Region: "eu"}
	start = lifecycle.Start{Epoch: 1}
	run   = lifecycle.Run{Observed: &siroccov1.Observed{Epoch: 1}}
	stop  = lifecycle.Stop{Cause: siroccov1.Cause_CAUSE_USER, Reason: "enough"}
	fin   = lifecycle.Finish{Epoch: 1, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_USER}}
)

func TestRecord(t *testing.T) {
	r := DefaultRules()
	alive := func(now time.Time) LastHeard { return func(string) time.Time { return now } }
	for _, c := range []struct {
		name  string
		steps []lifecycle.Step
		after time.Duration
		want  Kind // 0: nothing
		cause siroccov1.Cause
	}{
		{"fresh", nil, time.Second, 0, 0},
		{"lost command", nil, r.Accepted + time.Second, Republish, 0},
		{"too late to start", nil, life + time.Second, Stop, siroccov1.Cause_CAUSE_MAX_LIFETIME},
		{"just placed", []lifecycle.Step{place}, 2 * time.Second, 0, 0},
		{"placed, no answer", []lifecycle.Step{place}, r.Placed + 2*time.Second, Republish, 0},
		{"running", []lifecycle.Step{place, start, run}, time.Minute, 0, 0},
		{"overdue", []lifecycle.Step{place, start, run}, life + r.Overdue + time.Second, Stop, siroccov1.Cause_CAUSE_MAX_LIFETIME},
		{"the node still has time", []lifecycle.Step{place, start, run}, life + r.Overdue - time.Second, 0, 0},
		{"stopping", []lifecycle.Step{place, start, run, stop}, 5 * time.Second, 0, 0},
		{"stopping for too long", []lifecycle.Step{place, start, run, stop}, r.Stopping + 5*time.Second, Tell, 0},
		{"ended", []lifecycle.Step{place, start, run, stop, fin}, time.Minute, 0, 0},
		{"ended long ago", []lifecycle.Step{place, start, run, stop, fin}, r.Retention + time.Minute, Forget, 0},
	} {
		now := t0.Add(c.after)
		got, ok := Record(at(t, c.steps...), alive(now), now, r)
		if ok != (c.want != 0) || got.Kind != c.want || got.Cause != c.cause {
			t.Errorf("%s: %v %v %v, want %v", c.name, ok, got.Kind, got.Cause, c.want)
		}
	}
}

func TestSilentNodeIsLostLate(t *testing.T) {
	r := DefaultRules()
	sb := at(t, place, start, run, lifecycle.Extend{Deadline: t0.Add(24 * time.Hour)})
	last := func(string) time.Time { return t0 }
	if a, ok := Record(sb, last, t0.Add(15*time.Minute), r); ok {
		t.Errorf("after 15 minutes of silence: %v", a.Kind)
	}
	a, ok := Record(sb, last, t0.Add(17*time.Minute), r)
	if !ok || a.Kind != Finish || a.Cause != siroccov1.Cause_CAUSE_NODE_LOST {
		t.Errorf("after 17 minutes of silence: %v %v", a.Kind, a.Cause)
	}
}

func TestInventory(t *testing.T) {
	r := DefaultRules()
	asked := t0.Add(time.Hour)
	running, stopping := at(t, place, start, run), at(t, place, start, run, stop)
	item := func(epoch uint64) []*nodev1.InventoryItem {
		return []*nodev1.InventoryItem{{Tenant: "acme", Id: "sb-x", Epoch: epoch}}
	}
	for _, c := range []struct {
		name   string
		items  []*nodev1.InventoryItem
		record *siroccov1.Sandbox
		want   Kind
		cause  siroccov1.Cause
	}{
		{"as it should be", item(1), running, 0, 0},
		{"gone from the node", nil, running, Finish, siroccov1.Cause_CAUSE_NODE_LOST},
		{"gone, and was to go", nil, stopping, Finish, siroccov1.Cause_CAUSE_USER},
		{"another epoch", item(7), running, Tell, 0},
		{"no record", item(1), nil, Tell, 0},
		{"an ended record", item(1), at(t, place, start, run, stop, fin), Tell, 0},
		{"only placed", nil, at(t, place), 0, 0},
		{"gone before it was ready", nil, at(t, place, start), Republish, 0},
	} {
		var placed []*siroccov1.Sandbox
		if c.record != nil {
			placed = append(placed, c.record)
		}
		got := Inventory("n", c.items, placed, func(string) *siroccov1.Sandbox { return c.record }, asked, r)
		switch {
		case c.want == 0 && len(got) != 0:
			t.Errorf("%s: %v", c.name, got[0].Kind)
		case c.want != 0 && (len(got) != 1 || got[0].Kind != c.want || got[0].Cause != c.cause):
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestNothingIsEndedThatIsWell: whatever the history, a sandbox that its node
// runs, before its deadline, is left alone.
func TestNothingIsEndedThatIsWell(t *testing.T) {
	r := DefaultRules()
	rapid.Check(t, func(t *rapid.T) {
		sb := lifecycle.Accept("sb-x", "acme", "k", &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(life)}, t0)
		for i, s := range []lifecycle.Step{place, start, run}[:rapid.IntRange(1, 3).Draw(t, "steps")] {
			sb, _ = lifecycle.Apply(sb, s, t0.Add(time.Duration(i)*time.Second))
		}
		now := t0.Add(time.Duration(rapid.IntRange(3, int(life.Seconds())).Draw(t, "age")) * time.Second)
		seen := func(string) time.Time { return now }
		if a, ok := Record(sb, seen, now, r); ok && a.Kind != Republish && a.Kind != Tell {
			t.Fatalf("%s: %v", sb.GetState(), a.Kind)
		}
		items := []*nodev1.InventoryItem{{Tenant: "acme", Id: "sb-x", Epoch: sb.GetPlacement().GetEpoch()}}
		if got := Inventory("n", items, []*siroccov1.Sandbox{sb}, func(string) *siroccov1.Sandbox { return sb }, now, r); len(got) != 0 {
			t.Fatalf("inventory: %v", got[0].Kind)
		}
	})
}

// Of more ended sandboxes than may be kept, those that ended first go, and as many
// as may be kept stay.
func TestExcess(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ended []*siroccov1.Sandbox
		for range rapid.IntRange(0, 30).Draw(t, "ended") {
			at := time.Unix(rapid.Int64Range(0, 20).Draw(t, "at"), 0)
			ended = append(ended, &siroccov1.Sandbox{End: &siroccov1.End{At: timestamppb.New(at)}})
		}
		most := rapid.IntRange(0, 30).Draw(t, "most")
		gone := map[*siroccov1.Sandbox]bool{}
		var last time.Time
		for _, a := range Excess(ended, Rules{Retained: most}) {
			if a.Kind != Forget || gone[a.Sandbox] {
				t.Fatalf("%v twice, or not to be forgotten", a)
			}
			gone[a.Sandbox] = true
			last = a.Sandbox.GetEnd().GetAt().AsTime()
		}
		if want := max(len(ended)-most, 0); most > 0 && len(gone) != want || most == 0 && len(gone) != 0 {
			t.Fatalf("%d of %d are forgotten, %d may stay", len(gone), len(ended), most)
		}
		for _, sb := range ended {
			if !gone[sb] && sb.GetEnd().GetAt().AsTime().Before(last) {
				t.Fatalf("one that ended at %v stays, one of %v goes", sb.GetEnd().GetAt().AsTime(), last)
			}
		}
	})
}
