package scheduler

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/scheduler/placement"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"
)

// What a node is thought to use is what it reported and what was put on it since,
// whatever came in which order.
func TestAssumptionsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFleet(slog.New(slog.DiscardHandler))
		now := time.Unix(1000, 0)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Second)
			id := fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "id"))
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				f.assume("a", id, "t", placement.Amount{MemoryBytes: rapid.Int64Range(1, 9).Draw(t, "memory"), Sandboxes: 1}, now)
			case 1:
				f.unassume("a", id)
			case 2:
				f.setNode("a", &siroccov1.Node{
					Used:   &siroccov1.NodeCapacity{MemoryBytes: rapid.Int64Range(0, 99).Draw(t, "used")},
					SeenAt: timestamppb.New(now.Add(-time.Duration(rapid.IntRange(0, 4).Draw(t, "ago")) * time.Second)),
				})
			}
			m := f.member("a")
			want := amount(m.node.GetUsed())
			for _, a := range m.assumed {
				want = want.Add(a.need)
			}
			if m.used != want {
				t.Fatalf("used %+v, want %+v", m.used, want)
			}
		}
	})
}

// BenchmarkRank is a plan over the nodes of a large region.
func BenchmarkRank(b *testing.B) {
	f := newFleet(slog.New(slog.DiscardHandler))
	for i := range 300 {
		f.setNode(fmt.Sprintf("node-%d", i), &siroccov1.Node{
			Region: "eu", Ready: true, Capacity: &siroccov1.NodeCapacity{CpuMillis: 1 << 20, MemoryBytes: 1 << 40, DiskBytes: 1 << 40, Sandboxes: 4000},
			Used: &siroccov1.NodeCapacity{MemoryBytes: int64(i) << 20, Sandboxes: int32(i)}, SeenAt: timestamppb.Now(), //nolint:gosec // small
		})
	}
	req := placement.Request{ID: "sb-x", Need: placement.Amount{MemoryBytes: 1 << 20, Sandboxes: 1}}
	b.ReportAllocs()
	for b.Loop() {
		if plan := f.rank(placement.Rules{}, "t", req, time.Now()); len(plan.Candidates) == 0 {
			b.Fatal("no candidate")
		}
	}
}
