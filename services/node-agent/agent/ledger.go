package agent

import (
	"fmt"
	"sync"
	"time"

	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

// amount is what a sandbox takes of the node: its requests, not its limits.
type amount struct {
	cpuMillis, memoryBytes int64
	sandboxes              int64
}

func needOf(spec *siroccov1.CreateSandboxRequest) amount {
	r := spec.GetResources()
	return amount{int64(r.GetCpuRequestMillis()), r.GetMemoryRequestBytes(), 1}
}

// ledger counts what has been promised: the node's word on what still fits.
type ledger struct {
	mu       sync.Mutex
	capacity amount
	used     amount
	held     map[string]amount
}

func newLedger(capacity amount) *ledger {
	return &ledger{capacity: capacity, held: map[string]amount{}}
}

// retryFull is when a full node may have room again.
const retryFull = time.Second

// reserve takes need for a sandbox, or says why it does not fit.
func (l *ledger) reserve(id string, need amount) *nodev1.Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.held[id]; ok {
		return nil
	}
	refuse := func(reason string, want, used, capacity int64) *nodev1.Refusal {
		return &nodev1.Refusal{
			Reason: reason, RetryAfter: durationpb.New(retryFull),
			Message: fmt.Sprintf("%s: %d asked for, %d of %d free", reason, want, max(capacity-used, 0), capacity),
		}
	}
	switch {
	case l.used.sandboxes+need.sandboxes > l.capacity.sandboxes:
		return refuse("slots", need.sandboxes, l.used.sandboxes, l.capacity.sandboxes)
	case l.used.memoryBytes+need.memoryBytes > l.capacity.memoryBytes:
		return refuse("memory", need.memoryBytes, l.used.memoryBytes, l.capacity.memoryBytes)
	case l.used.cpuMillis+need.cpuMillis > l.capacity.cpuMillis:
		return refuse("cpu", need.cpuMillis, l.used.cpuMillis, l.capacity.cpuMillis)
	}
	l.take(id, need)
	return nil
}

// force takes need whether it fits or not: the sandbox runs already.
func (l *ledger) force(id string, need amount) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.held[id]; !ok {
		l.take(id, need)
	}
}

func (l *ledger) take(id string, need amount) {
	l.held[id] = need
	l.used.cpuMillis += need.cpuMillis
	l.used.memoryBytes += need.memoryBytes
	l.used.sandboxes += need.sandboxes
}

// release gives back what a sandbox held; more than once is harmless.
func (l *ledger) release(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	need, ok := l.held[id]
	if !ok {
		return
	}
	delete(l.held, id)
	l.used.cpuMillis -= need.cpuMillis
	l.used.memoryBytes -= need.memoryBytes
	l.used.sandboxes -= need.sandboxes
}

func (l *ledger) totals() (used, capacity amount) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used, l.capacity
}
