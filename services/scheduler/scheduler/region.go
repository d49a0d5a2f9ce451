package scheduler

import (
	"sync/atomic"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/services/scheduler/placement"
	"google.golang.org/protobuf/types/known/durationpb"
)

// tally counts asks of nodes, and those that were answered, yes or no.
type tally struct{ asks, answers atomic.Int64 }

// region says what the region's nodes are like.
func (s *Scheduler) region() *siroccov1.RegionReport {
	d := s.cfg.Limits.Default
	r := s.fleet.report(placement.Amount{CPUMillis: int64(d.CPURequestMillis), MemoryBytes: d.MemoryRequestBytes})
	r.Asks, r.Answers = s.tally.asks.Load(), s.tally.answers.Load()
	return r
}

// report sums up what nodes say of themselves. What fits is counted in sandboxes of the
// size that those have which run, or of the usual one where none does.
func (f *fleet) report(usual placement.Amount) *siroccov1.RegionReport {
	f.mu.RLock()
	defer f.mu.RUnlock()
	r := &siroccov1.RegionReport{}
	var capacity, used placement.Amount
	var latency, weight float64
	for _, m := range f.nodes {
		if m.node == nil {
			continue
		}
		r.Nodes++
		r.Starts += m.node.GetStarts()
		r.StartFailures += m.node.GetStartFailures()
		r.LiveSandboxes += int64(m.node.GetLive())
		if !m.node.GetReady() || m.orders.GetCordoned() || m.orders.GetDraining() {
			continue
		}
		r.ReadyNodes++
		capacity, used = capacity.Add(amount(m.node.GetCapacity())), used.Add(m.used)
		for _, n := range m.node.GetWarm() {
			r.WarmSandboxes += int64(n)
		}
		if micros := m.node.GetStartLatencyMicros(); micros > 0 {
			latency += float64(micros)
			weight++
		}
	}
	if weight > 0 {
		r.StartLatency = durationpb.New(time.Duration(latency/weight) * time.Microsecond)
	}
	r.CapacitySandboxes, r.FreeSandboxes = fits(capacity, used, usual)
	return r
}

// fits returns how many sandboxes a capacity holds, and how many more still fit.
func fits(capacity, used, size placement.Amount) (all, free int64) {
	if n := used.Sandboxes; n > 0 {
		size.CPUMillis, size.MemoryBytes = max(used.CPUMillis/n, 1), max(used.MemoryBytes/n, 1)
	}
	all = min(capacity.Sandboxes, capacity.CPUMillis/max(size.CPUMillis, 1), capacity.MemoryBytes/max(size.MemoryBytes, 1))
	return all, max(all-used.Sandboxes, 0)
}
