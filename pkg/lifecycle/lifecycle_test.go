package lifecycle

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func accepted() *siroccov1.Sandbox {
	return Accept("sb-x", "acme", "key", &siroccov1.CreateSandboxRequest{MaxLifetime: durationpb.New(time.Minute)}, t0)
}

// anyStep draws a step, of a right, an old or a future epoch.
func anyStep(t *rapid.T, sb *siroccov1.Sandbox) Step {
	epoch := sb.GetPlacement().GetEpoch() + uint64(rapid.IntRange(0, 2).Draw(t, "epoch")) - 1
	switch rapid.IntRange(0, 13).Draw(t, "step") {
	case 0:
		return Place{Region: "eu", Node: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "node"), Address: "x:1"}
	case 1:
		return Start{Epoch: epoch}
	case 2:
		return Run{Observed: &siroccov1.Observed{Epoch: epoch}}
	case 3:
		return Stop{Cause: siroccov1.Cause_CAUSE_USER}
	case 4:
		return Finish{Epoch: epoch, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_EXITED}}
	case 5:
		return Extend{Deadline: t0.Add(time.Duration(rapid.IntRange(1, 100).Draw(t, "by")) * time.Minute)}
	case 6:
		return SetTags{Tags: map[string]string{"k": rapid.StringN(0, 3, 3).Draw(t, "tag")}}
	case 7:
		if rapid.Bool().Draw(t, "withdrawn") {
			return Notice{}
		}
		return Notice{EvictAt: t0.Add(time.Minute)}
	case 8:
		return Migrate{Move: &siroccov1.Move{Key: rapid.StringN(1, 2, 2).Draw(t, "key"), Region: "us", Node: "c", Epoch: NextEpoch(sb) + epoch - sb.GetPlacement().GetEpoch()}}
	case 9:
		return CallOff{Epoch: epoch + 1, Code: "unavailable", Failure: "it did not work"}
	case 10:
		return Depart{Epoch: epoch + 1}
	case 12:
		return GiveUp{Epoch: epoch, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_NO_CAPACITY}}
	case 11:
		return Arrive{Observed: &siroccov1.Observed{Epoch: epoch}, Pause: time.Second}
	}
	port := &siroccov1.Port{Port: 80, Protocol: siroccov1.Protocol_PROTOCOL_HTTPS}
	return OpenTunnel{Port: port, Tunnel: &siroccov1.Tunnel{Port: 80}}
}

func TestHistoriesKeepTheInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sb, at := accepted(), t0
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			at = at.Add(time.Second)
			step := anyStep(t, sb)
			before := proto.CloneOf(sb)
			next, err := Apply(sb, step, at)
			if !proto.Equal(before, sb) {
				t.Fatalf("%T changed the record that it was given", step)
			}
			if err != nil {
				continue
			}
			if Ended(sb.GetState()) && next.GetState() != sb.GetState() {
				t.Fatalf("%T moved %s to %s", step, sb.GetState(), next.GetState())
			}
			if next.GetState() != sb.GetState() && !May(sb.GetState(), next.GetState()) {
				t.Fatalf("%T: %s may not follow %s", step, next.GetState(), sb.GetState())
			}
			if next.GetPlacement().GetEpoch() < sb.GetPlacement().GetEpoch() {
				t.Fatalf("%T: the epoch went back", step)
			}
			if Ended(next.GetState()) != (next.GetEnd() != nil) {
				t.Fatalf("%T: state %s with end %v", step, next.GetState(), next.GetEnd())
			}
			if Live(next.GetState()) && next.GetPlacement() == nil {
				t.Fatalf("%T: %s without a placement", step, next.GetState())
			}
			for i, h := range next.GetHistory() {
				if i > 0 && h.GetAt().AsTime().Before(next.GetHistory()[i-1].GetAt().AsTime()) {
					t.Fatalf("history out of order: %v", next.GetHistory())
				}
			}
			if Entered(next, next.GetState()).IsZero() {
				t.Fatalf("state %s is not in the history", next.GetState())
			}
			// Each step twice is each step once.
			if again, err := Apply(next, step, at); err == nil && !isPlace(step) && !proto.Equal(again, next) {
				t.Fatalf("%T twice differs from once", step)
			}
			sb = next
		}
	})
}

func isPlace(s Step) bool { _, ok := s.(Place); return ok }

func TestOldEpochChangesNothing(t *testing.T) {
	sb := accepted()
	for range 2 {
		var err error
		if sb, err = Apply(sb, Place{Node: "a"}, t0); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []Step{Start{Epoch: 1}, Run{Observed: &siroccov1.Observed{Epoch: 1}}, Finish{Epoch: 1}} {
		if _, err := Apply(sb, step, t0); !errors.Is(err, ErrNoChange) {
			t.Errorf("%T of epoch 1 at epoch 2: %v", step, err)
		}
	}
}

func TestStoppedOrFailed(t *testing.T) {
	run := func(steps ...Step) *siroccov1.Sandbox {
		t.Helper()
		sb := accepted()
		for _, s := range steps {
			var err error
			if sb, err = Apply(sb, s, t0); err != nil {
				t.Fatalf("%T: %v", s, err)
			}
		}
		return sb
	}
	fin := Finish{Epoch: 1, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_OOM}}
	place := Place{Node: "a"}
	for _, c := range []struct {
		name  string
		steps []Step
		want  siroccov1.State
	}{
		{"never ran", []Step{place, fin}, siroccov1.State_STATE_FAILED},
		{"ran", []Step{place, Run{&siroccov1.Observed{Epoch: 1}}, fin}, siroccov1.State_STATE_STOPPED},
		{"stopped while starting", []Step{place, Stop{}, fin}, siroccov1.State_STATE_STOPPED},
		{"stopped before a node", []Step{Stop{Cause: siroccov1.Cause_CAUSE_USER}}, siroccov1.State_STATE_STOPPED},
	} {
		if got := run(c.steps...).GetState(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestEveryStateIsInTheTable(t *testing.T) {
	for n, name := range siroccov1.State_name {
		if _, ok := next[siroccov1.State(n)]; !ok {
			t.Errorf("%s is not in the transition table", name)
		}
	}
}

// Two deliveries of one command decide from the same record: the second decision
// changes nothing.
func TestPlaceKnowsItsEpoch(t *testing.T) {
	sb, err := Apply(accepted(), Place{Node: "a", Epoch: 1}, t0)
	if err != nil || sb.GetPlacement().GetEpoch() != 1 {
		t.Fatalf("%v, %v", sb, err)
	}
	if _, err := Apply(sb, Place{Node: "b", Epoch: 1}, t0); !errors.Is(err, ErrNoChange) {
		t.Errorf("got %v", err)
	}
	if sb, err = Apply(sb, Place{Node: "b", Epoch: 2}, t0); err != nil || sb.GetPlacement().GetNode() != "b" {
		t.Errorf("%v, %v", sb, err)
	}
}

func TestOpenTunnelKeepsItsBounds(t *testing.T) {
	sb := accepted()
	open := func(port uint32, url string) error {
		next, err := Apply(sb, OpenTunnel{
			Port:   &siroccov1.Port{Port: port, Protocol: siroccov1.Protocol_PROTOCOL_TCP},
			Tunnel: &siroccov1.Tunnel{Port: port, Protocol: siroccov1.Protocol_PROTOCOL_TCP, Url: url},
		}, t0)
		if err == nil {
			sb = next
		}
		return err
	}
	for i := range uint32(MaxPorts) {
		if i == 2 {
			if err := open(1, "tcp://x:20001"); !errors.Is(err, ErrPortShared) {
				t.Errorf("the public port of another port: %v", err)
			}
		}
		if err := open(1000+i, fmt.Sprintf("tcp://x:%d", 20000+i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := open(1, "tcp://x:1"); !errors.Is(err, ErrTooManyPorts) {
		t.Errorf("one port too many: %v", err)
	}
	if len(sb.GetTunnels()) != MaxPorts {
		t.Errorf("%d tunnels", len(sb.GetTunnels()))
	}
}

// TestTextsFitARecord: whatever a guest or a registry says, the record can be
// stored.
func TestTextsFitARecord(t *testing.T) {
	wild := strings.Repeat("\xff\xc3", 1<<20)
	sb, err := Apply(accepted(), Stop{Cause: siroccov1.Cause_CAUSE_USER, Reason: wild}, t0)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(sb)
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) > 64<<10 {
		t.Errorf("a record of %d bytes", len(raw))
	}
}

// A node whose answer was lost may have begun the sandbox.
func TestGivingUpEndsNothingThatRuns(t *testing.T) {
	sb := accepted()
	steps := []Step{Place{Region: "eu", Node: "a"}, Start{Epoch: 1}, Run{Observed: &siroccov1.Observed{Epoch: 1}}}
	for i, step := range steps {
		var err error
		if sb, err = Apply(sb, step, t0); err != nil {
			t.Fatal(err)
		}
		ended, err := Apply(sb, GiveUp{Epoch: 1, End: &siroccov1.End{Cause: siroccov1.Cause_CAUSE_NO_CAPACITY}}, t0)
		if i == 0 && (err != nil || ended.GetState() != siroccov1.State_STATE_FAILED) || i > 0 && !errors.Is(err, ErrNoChange) {
			t.Errorf("given up when %s: %v, %v", sb.GetState(), ended.GetState(), err)
		}
	}
}
