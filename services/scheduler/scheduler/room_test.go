package scheduler

import (
	"context"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirocco-run/sirocco/services/scheduler/placement"
	"pgregory.net/rapid"
)

// However capacity comes free: it goes to tenants in turn, to the creates of one
// in the order in which they came, and a create that does not fit holds up nobody
// of another shape.
func TestRoom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		free := int64(0)
		var placed []string
		r := newRoom(func(w *waiter) placement.Plan {
			if w.req.Need.Sandboxes > free {
				return placement.Plan{}
			}
			free -= w.req.Need.Sandboxes
			placed = append(placed, w.req.ID)
			return placement.Plan{Candidates: []placement.Candidate{{Node: "n1"}}}
		})
		waiting := map[string][]string{} // by tenant, in order
		var huge []string
		enter := func(tenant string, need int64) {
			id := tenant + strconv.Itoa(len(waiting[tenant])+len(huge))
			w := newWaiter(tenant, "", placement.Request{ID: id, Need: placement.Amount{Sandboxes: need}})
			r.enter(w)
			if need == 1 {
				waiting[tenant] = append(waiting[tenant], id)
			} else {
				huge = append(huge, id)
			}
		}
		for _, tenant := range []string{"a", "b", "c"} {
			for range rapid.IntRange(0, 3).Draw(t, "huge") {
				enter(tenant, 1000)
			}
			for range rapid.IntRange(0, 30).Draw(t, "waiting") {
				enter(tenant, 1)
			}
		}
		left := len(waiting["a"]) + len(waiting["b"]) + len(waiting["c"])
		got := map[string]int{}
		for left > 0 {
			placed = nil
			some := rapid.Int64Range(0, 5).Draw(t, "free")
			free = some
			r.offer()
			if want := min(int(some), left); len(placed) != want {
				t.Fatalf("%d of %d places taken, %d wait", len(placed), some, left)
			}
			left -= len(placed)
			for _, id := range placed {
				tenant := id[:1]
				if waiting[tenant][got[tenant]] != id {
					t.Fatalf("%s came before %s", id, waiting[tenant][got[tenant]])
				}
				got[tenant]++
			}
			// Who still waits has had as many as anybody, but for one turn.
			for x := range waiting {
				for y := range waiting {
					if got[x] < len(waiting[x]) && got[y] > got[x]+1 {
						t.Fatalf("%v of %s and %v of %s", got[x], x, got[y], y)
					}
				}
			}
		}
		if n := len(r.shapes); n > 1 || n == 1 && len(huge) == 0 {
			t.Fatalf("left: %v", r.shapes)
		}
	})
}

// Who waits is told when it is its turn, or that its time is over; who has gone
// takes nothing.
func TestWaitInRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var free atomic.Bool
		var tries atomic.Int32
		r := newRoom(func(*waiter) placement.Plan {
			tries.Add(1)
			if free.Load() {
				return placement.Plan{Candidates: []placement.Candidate{{Node: "n1"}}, Fit: 1}
			}
			return placement.Plan{Fit: 7}
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = r.run(ctx) }()
		w := newWaiter("a", "", placement.Request{ID: "x"})
		plan, err := r.wait(ctx, w, time.Now().Add(time.Second))
		if err != nil || len(plan.Candidates) != 0 || plan.Fit != 7 || r.holds(w) {
			t.Errorf("over: %+v, %v", plan, err)
		}
		synctest.Wait()
		before := tries.Load()
		time.Sleep(time.Second) //nolint:forbidigo // fake time
		if tries.Load() != before {
			t.Error("tried for one that has gone")
		}
		same, second := newWaiter("b", "", placement.Request{ID: "y"}), make(chan placement.Plan)
		go func() {
			plan, _ := r.wait(ctx, w, time.Now().Add(time.Hour))
			second <- plan
		}()
		synctest.Wait()
		if !r.holds(same) {
			t.Error("it does not say that one of this shape waits")
		}
		free.Store(true)
		if plan := <-second; !slices.ContainsFunc(plan.Candidates, func(c placement.Candidate) bool { return c.Node == "n1" }) {
			t.Errorf("found: %+v", plan)
		}
		if r.holds(same) {
			t.Error("it still says that one waits")
		}
		free.Store(false)
		go func() {
			_, err := r.wait(ctx, w, time.Now().Add(time.Hour))
			if err == nil {
				t.Error("its end is no error")
			}
			second <- placement.Plan{}
		}()
		synctest.Wait()
		cancel()
		<-second
		<-done
	})
}
