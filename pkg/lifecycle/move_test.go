package lifecycle

import (
	"errors"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

func after(t *testing.T, sb *siroccov1.Sandbox, steps ...Step) *siroccov1.Sandbox {
	t.Helper()
	for _, s := range steps {
		next, err := Apply(sb, s, t0)
		if err != nil {
			t.Fatalf("%T: %v", s, err)
		}
		sb = next
	}
	return sb
}

func running(t *testing.T) *siroccov1.Sandbox {
	return after(t, accepted(), Place{Region: "eu", Node: "a", Address: "a:1"}, Run{Observed: &siroccov1.Observed{Epoch: 1}})
}

func moveTo(key string) Migrate {
	return Migrate{Move: &siroccov1.Move{Key: key, Region: "us", Node: "b", NodeAddress: "b:1", Epoch: 2, Reason: "to be nearer"}}
}

func TestAMoveThatIsMade(t *testing.T) {
	sb := after(t, running(t), moveTo("k"))
	if Departed(sb, 2) || Shadow(sb, "eu") {
		t.Errorf("it has not departed: %v", sb)
	}
	gone := after(t, sb, Depart{Epoch: 2})
	if !Departed(gone, 2) || !Shadow(gone, "eu") || Shadow(gone, "us") || gone.GetPlacement().GetNode() != "b" {
		t.Errorf("it has departed: %v", gone)
	}
	for _, late := range []Step{Depart{Epoch: 2}, CallOff{Epoch: 2}, moveTo("k"), Finish{Epoch: 1}} {
		if _, err := Apply(gone, late, t0); !errors.Is(err, ErrNoChange) {
			t.Errorf("%T after the departure: %v", late, err)
		}
	}
	if _, err := Apply(gone, Here{"eu", SetTags{}}, t0); !errors.Is(err, ErrElsewhere) {
		t.Errorf("a change of the shadow: %v", err)
	}
	there := after(t, gone, Arrive{Observed: &siroccov1.Observed{Epoch: 2}, Pause: time.Second, Bytes: 7})
	m := there.GetMove()
	if there.GetState() != siroccov1.State_STATE_RUNNING || m.GetEnded() == nil || m.GetPause().AsDuration() != time.Second || m.GetFromNode() != "a" {
		t.Errorf("it has arrived: %v", there)
	}
	// The shadow follows.
	shadow := after(t, gone, Follow{"eu", there})
	if !proto.Equal(shadow, there) {
		t.Errorf("the shadow: %v", shadow)
	}
	for what, old := range map[string]*siroccov1.Sandbox{"before the departure": sb, "before the arrival": gone} {
		if _, err := Apply(there, Follow{"us", old}, t0); !errors.Is(err, ErrNoChange) {
			t.Errorf("following the record %s: %v", what, err)
		}
	}
}

func TestAMoveThatIsCalledOff(t *testing.T) {
	sb := after(t, running(t), moveTo("k"))
	if _, err := Apply(sb, moveTo("other"), t0); !errors.Is(err, ErrMoving) {
		t.Errorf("another move: %v", err)
	}
	back := after(t, sb, CallOff{Epoch: 2, Code: "unavailable", Failure: "the network broke"})
	if back.GetState() != siroccov1.State_STATE_RUNNING || back.GetPlacement().GetEpoch() != 1 || back.GetMove().GetFailure() == "" {
		t.Errorf("called off: %v", back)
	}
	if _, err := Apply(back, Depart{Epoch: 2}, t0); !errors.Is(err, ErrNoChange) {
		t.Errorf("a departure that was called off: %v", err)
	}
	if _, err := Apply(back, moveTo("k"), t0); !errors.Is(err, ErrNoChange) {
		t.Errorf("the same command again: %v", err)
	}
	// The copy of the move that was called off may still wait: its epoch is used up.
	if _, err := Apply(back, moveTo("again"), t0); !errors.Is(err, ErrNotRunning) {
		t.Errorf("another move of the same epoch: %v", err)
	}
	again := moveTo("again")
	again.Move.Epoch = NextEpoch(back)
	gone := after(t, back, again, Depart{Epoch: 3})
	if gone.GetPlacement().GetEpoch() != 3 {
		t.Errorf("the next move: %v", gone)
	}
}

func TestWhatCannotMove(t *testing.T) {
	placed := after(t, accepted(), Place{Region: "eu", Node: "a"})
	if _, err := Apply(placed, moveTo("k"), t0); !errors.Is(err, ErrNotRunning) {
		t.Errorf("one that starts: %v", err)
	}
	stopping := after(t, running(t), Stop{})
	if _, err := Apply(stopping, moveTo("k"), t0); !errors.Is(err, ErrEnded) {
		t.Errorf("one that ends: %v", err)
	}
	// An end that is wanted meanwhile wins.
	leaving := after(t, running(t), moveTo("k"), Stop{Cause: siroccov1.Cause_CAUSE_USER})
	if _, err := Apply(leaving, Depart{Epoch: 2}, t0); !errors.Is(err, ErrNoChange) {
		t.Errorf("the departure of one that ends: %v", err)
	}
}
