package fleet

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/node"
	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"golang.org/x/sync/errgroup"
)

const (
	// lookEvery is how often the processes and the disk are looked at, auditEvery
	// how often all nodes are asked what they run.
	lookEvery  = time.Second
	auditEvery = 15 * time.Second
	// settle is for how long an answer must have been known before a node must
	// show what it says.
	settle = 2 * time.Second
)

// watcher watches over the region while it is measured: what it takes of the
// machine, and whether what runs is what must run.
type watcher struct {
	region *region
	load   *load
	began  time.Time

	memory, nodes, disk, live bench.Series

	// auditing is held while nodes are asked, and while there is nobody to ask.
	auditing sync.Mutex
	// old are executions of epochs that have been overtaken, as the last audit
	// found them: by the next they must be gone.
	old map[execution]bool

	mu     sync.Mutex
	audits int
	broken []string
	peak   int64 // of the control plane's memory, over all its processes
}

// execution is one epoch of a sandbox on a node.
type execution struct {
	id, node string
	epoch    uint64
}

func newWatcher(r *region, l *load) *watcher {
	return &watcher{region: r, load: l, began: l.began}
}

// run looks until ctx ends.
func (w *watcher) run(ctx context.Context) {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	audit := time.NewTicker(auditEvery)
	defer audit.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			w.look()
		case <-audit.C:
			w.audit(ctx)
		}
	}
}

// look takes what the processes and the streams take now.
func (w *watcher) look() {
	at := time.Since(w.began)
	control, nodes := w.region.control.Load().Usage(), w.region.nodes.Usage()
	live, _, _ := w.load.count()
	w.memory.Add(at, float64(control.Resident)/(1<<20))
	w.nodes.Add(at, float64(nodes.Resident)/(1<<20))
	w.disk.Add(at, float64(bench.DiskUse(w.region.data+"/bus"))/(1<<20))
	w.live.Add(at, float64(live))
	w.mu.Lock()
	w.peak = max(w.peak, control.Peak)
	w.mu.Unlock()
}

// audit asks every node what it runs. What must live and is nowhere is lost; an
// epoch that is on two nodes is double. One that was placed anew, because its node
// did not answer in time, may be there in an older epoch too, but not for long.
func (w *watcher) audit(ctx context.Context) {
	w.auditing.Lock()
	defer w.auditing.Unlock()
	must := w.load.settled(time.Now().Add(-settle))
	running, broken := w.ask(ctx)
	if ctx.Err() != nil {
		return
	}
	old := map[execution]bool{}
	for id, all := range running {
		newest := slices.MaxFunc(all, func(a, b execution) int { return cmp.Compare(a.epoch, b.epoch) })
		for _, x := range all {
			switch {
			case x == newest:
			case x.epoch == newest.epoch:
				broken = append(broken, fmt.Sprintf("double: epoch %d of %s is on %s and on %s", x.epoch, id, x.node, newest.node))
			case w.old[x]:
				broken = append(broken, fmt.Sprintf("orphan: epoch %d of %s is still on %s, epoch %d is on %s", x.epoch, id, x.node, newest.epoch, newest.node))
			default:
				old[x] = true
			}
		}
	}
	w.old = old
	if len(broken) == 0 { // else some were not asked
		for _, id := range w.load.still(must) {
			if len(running[id]) == 0 {
				broken = append(broken, fmt.Sprintf("lost: %s was answered as running and is on no node", id))
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.audits++
	w.broken = append(w.broken, broken...)
}

// ask returns what all nodes run, by sandbox, and which do not say.
func (w *watcher) ask(ctx context.Context) (running map[string][]execution, broken []string) {
	asks := node.NewClient(w.region.nc, nil, 10*time.Second)
	running = map[string][]execution{}
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(8)
	for _, name := range w.region.nodeNames() {
		group.Go(func() error {
			items, err := asks.Inventory(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				broken = append(broken, fmt.Sprintf("%s does not answer: %v", name, err))
			}
			for _, item := range items {
				running[item.GetId()] = append(running[item.GetId()], execution{item.GetId(), name, item.GetEpoch()})
			}
			return nil
		})
	}
	_ = group.Wait()
	return running, broken
}
