package scheduler

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/scheduler/placement"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const template = "template"

func ready(name string, warm int32, seen time.Time) *siroccov1.Node {
	return &siroccov1.Node{
		Name: name, Ready: true, Capacity: &siroccov1.NodeCapacity{Sandboxes: 100}, Used: &siroccov1.NodeCapacity{},
		Warm: map[string]int32{template: warm}, SeenAt: timestamppb.New(seen), StartLatencyMicros: 50_000,
	}
}

func (f *fleet) first(i int, now time.Time) string {
	req := placement.Request{ID: fmt.Sprint("sb-", i), Need: placement.Amount{Sandboxes: 1}}
	return f.rank(placement.Rules{}, template, req, now).Candidates[0].Node
}

// TestWarmOnesAreSharedOut: requests of one moment do not all go to the node
// with the last warm sandbox, and what the node reports later counts again.
func TestWarmOnesAreSharedOut(t *testing.T) {
	now := time.Now()
	f := newFleet(slog.New(slog.DiscardHandler))
	f.setNode("cold", ready("cold", 0, now))
	f.setNode("warm", ready("warm", 2, now))
	f.setNode("other", ready("other", 0, now))
	got := map[string]int{}
	for i := range 8 {
		got[f.first(i, now)]++
	}
	// Then by load alone: the warm ones are used up.
	if got["warm"] > 3 || got["cold"] < 2 || got["other"] < 2 {
		t.Fatalf("8 requests at once, 2 warm: %v", got)
	}
	now = now.Add(time.Second)
	f.setNode("warm", ready("warm", 1, now))
	if name := f.first(9, now); name != "warm" {
		t.Fatalf("it went to %s, though there was a warm one again", name)
	}
}

// TestFailingNodeIsAvoided: a node whose starts fail quickly is passed over, an
// agent that began again is not, and neither is one whose failures are old.
func TestFailingNodeIsAvoided(t *testing.T) {
	now := time.Now()
	f := newFleet(slog.New(slog.DiscardHandler))
	report := func(name string, starts, failures int64) {
		n := ready(name, 0, now)
		n.Starts, n.StartFailures = starts, failures
		f.setNode(name, n)
	}
	failing := func() float64 {
		req := placement.Request{ID: "sb-x", Need: placement.Amount{Sandboxes: 1}}
		for _, c := range f.rank(placement.Rules{}, template, req, now).Candidates {
			if c.Node == "b" {
				return c.Failing
			}
		}
		t.Fatal("b is no candidate")
		return 0
	}
	for _, name := range []string{"a", "b", "c"} {
		report(name, 1000, 1000) // long ago
	}
	if failing() != 0 {
		t.Fatal("what happened before the scheduler began counts")
	}
	for i := range int64(5) {
		now = now.Add(time.Second)
		report("a", 1000+i, 1000)
		report("b", 1000, 1001+i)
		report("c", 1000+i, 1000)
	}
	if failing() < 1 {
		t.Fatalf("5 of 5 failed, and that costs %v", failing())
	}
	for i := range 10 {
		if name := f.first(i, now); name == "b" {
			t.Fatal("it went to the node that fails")
		}
	}
	now = now.Add(time.Second)
	report("b", 500, 0) // a new agent
	if failing() != 0 {
		t.Fatalf("500 starts went well since, and it still costs %v", failing())
	}
}
