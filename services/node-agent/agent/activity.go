package agent

import (
	"slices"
	"sync"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// activity knows when something last happened in a sandbox.
type activity struct {
	policy *siroccov1.IdlePolicy

	mu   sync.Mutex
	last time.Time
	// busy counts execs that run and calls that are under way now.
	busy int
}

func newActivity(policy *siroccov1.IdlePolicy, now time.Time) *activity {
	return &activity{policy: policy, last: now}
}

func (a *activity) counts(kind siroccov1.Activity) bool {
	return slices.Contains(a.policy.GetActivity(), kind)
}

// touch says that something of the kind happens now.
func (a *activity) touch(kind siroccov1.Activity, now time.Time) {
	if !a.counts(kind) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.After(a.last) {
		a.last = now
	}
}

// setExecs says how many execs run.
func (a *activity) setExecs(n int, now time.Time) {
	if !a.counts(siroccov1.Activity_ACTIVITY_EXEC) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy > 0 || n > 0 {
		a.last = now
	}
	a.busy = n
}

// idleAt returns when the sandbox will have been idle for too long if nothing
// happens from now on; false when it never will.
func (a *activity) idleAt(now time.Time) (time.Time, bool) {
	timeout := a.policy.GetTimeout().AsDuration()
	if timeout <= 0 {
		return time.Time{}, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy > 0 {
		return now.Add(timeout), true
	}
	return a.last.Add(timeout), true
}
