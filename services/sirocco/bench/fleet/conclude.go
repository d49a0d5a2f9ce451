package fleet

import (
	"context"
	"fmt"

	"github.com/sirocco-run/sirocco/services/sirocco/bench"
)

// breaks notes something that must hold and does not.
func (w *watcher) breaks(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, fmt.Sprintf(format, args...))
}

// conclude completes the report once everything has ended.
func (m *measurement) conclude(ctx context.Context) {
	m.watcher.look()
	m.watcher.audit(ctx)
	r, w := m.report, m.watcher
	_, made, ended := m.load.count()
	r.About = fmt.Sprintf("%d simulated nodes, %d scheduler(s), %d sandboxes made and %d ended", m.cfg.Nodes, m.cfg.Schedulers, made, ended)
	r.Figure("control plane: most memory", float64(w.peak)/(1<<20), "MiB", 0)
	r.Fail(&m.load.failures)
	r.Lost = w.lost()
	r.Invariants = &bench.Verdict{
		Checked: fmt.Sprintf("%d times all nodes were asked what they run: nothing lost, nothing double", w.audits),
		Broken:  append(w.broken, m.load.doubles...),
	}
	r.Plots = append(r.Plots,
		bench.Plot{Name: "memory", Title: "Memory", X: "seconds", Y: "MiB", Lines: []bench.Line{
			{Name: "control plane", Points: w.memory.Points()}, {Name: "nodes", Points: w.nodes.Points()},
		}},
		bench.Plot{Name: "disk", Title: "Disk of the bus", X: "seconds", Y: "MiB", Lines: []bench.Line{{Name: "disk", Points: w.disk.Points()}}},
		bench.Plot{Name: "live", Title: "Live sandboxes", X: "seconds", Y: "sandboxes", Lines: []bench.Line{{Name: "live", Points: w.live.Points()}}},
	)
}

// lost are sandboxes that should have ended with everything else.
func (w *watcher) lost() []string {
	w.load.mu.Lock()
	defer w.load.mu.Unlock()
	var lost []string
	for id := range w.load.since {
		lost = append(lost, id)
	}
	return lost
}
