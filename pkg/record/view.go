package record

import (
	"context"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// View is a copy of all records in memory, kept fresh by the bus: what the api
// lists from, the scheduler counts, the relay routes by and the reaper scans.
// It may be a moment behind; decisions are made sure by compare-and-swap.
//
// Records that it returns are shared and must not be changed.
//
// Concurrency: Run owns the writing; every other method may be called from
// anywhere.
type View struct {
	store     *Store
	keepEnded bool
	onChange  func(old, new *siroccov1.Sandbox)

	mu      sync.RWMutex
	byID    map[string]*siroccov1.Sandbox
	waiters map[string]map[chan *siroccov1.Sandbox]struct{}
	ready   chan struct{}
	once    sync.Once
}

// ViewOptions shape a view.
type ViewOptions struct {
	// KeepEnded keeps records that have ended, until they are deleted.
	KeepEnded bool
	// OnChange is called in order, one call at a time, from Run. old is nil for
	// a record that was not known; new is nil for one that was deleted.
	OnChange func(old, new *siroccov1.Sandbox)
}

// NewView makes an empty view; Run fills it.
func NewView(store *Store, o ViewOptions) *View {
	return &View{
		store: store, keepEnded: o.KeepEnded, onChange: o.OnChange,
		byID:    map[string]*siroccov1.Sandbox{},
		waiters: map[string]map[chan *siroccov1.Sandbox]struct{}{},
		ready:   make(chan struct{}),
	}
}

// Ready is closed once the view has caught up for the first time.
func (v *View) Ready() <-chan struct{} { return v.ready }

// Run follows the records until ctx ends. Losing the bus only pauses it.
func (v *View) Run(ctx context.Context) error {
	var seen map[string]bool // nil once it has caught up
	return bus.Watch(ctx, v.store.js, subject.BucketSandboxes, ">", func() { seen = map[string]bool{} }, func(entry jetstream.KeyValueEntry) {
		if entry == nil {
			v.forgetUnseen(seen)
			seen = nil
			v.once.Do(func() { close(v.ready) })
			return
		}
		_, id, err := subject.ParseRecordKey(entry.Key())
		if err != nil {
			return
		}
		if seen != nil {
			seen[id] = true
		}
		if entry.Operation() != jetstream.KeyValuePut {
			v.apply(id, nil)
			return
		}
		if sb, err := decode(entry); err == nil {
			v.apply(id, sb)
		}
	})
}

// forgetUnseen drops what was deleted while the view did not listen.
func (v *View) forgetUnseen(seen map[string]bool) {
	v.mu.RLock()
	var gone []string
	for id := range v.byID {
		if !seen[id] {
			gone = append(gone, id)
		}
	}
	v.mu.RUnlock()
	for _, id := range gone {
		v.apply(id, nil)
	}
}

func (v *View) apply(id string, sb *siroccov1.Sandbox) {
	v.mu.Lock()
	old := v.byID[id]
	if old != nil && sb != nil && sb.GetRevision() <= old.GetRevision() {
		v.mu.Unlock()
		return
	}
	if sb == nil || lifecycle.Ended(sb.GetState()) && !v.keepEnded {
		delete(v.byID, id)
	} else {
		v.byID[id] = sb
	}
	if sb != nil {
		for ch := range v.waiters[id] {
			offer(ch, sb)
		}
	}
	v.mu.Unlock()
	if v.onChange != nil && (old != nil || sb != nil) {
		v.onChange(old, sb)
	}
}

// offer puts the newest record into a channel of one place, over an older one.
func offer(ch chan *siroccov1.Sandbox, sb *siroccov1.Sandbox) {
	select {
	case <-ch:
	default:
	}
	ch <- sb
}

// Lookup returns a record by its id alone, of any tenant; nil if the view does
// not hold it. The caller checks the tenant.
func (v *View) Lookup(id string) *siroccov1.Sandbox {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.byID[id]
}

// Get returns a tenant's record, from the view or, where it does not hold it,
// from the bucket. Errors: NotFound.
func (v *View) Get(ctx context.Context, tenant, id string) (*siroccov1.Sandbox, error) {
	if sb := v.Lookup(id); sb != nil {
		if sb.GetTenant() != tenant {
			return nil, notFound(id)
		}
		return sb, nil
	}
	return v.store.Get(ctx, tenant, id)
}

// Each calls f with every record, in no order, until f returns false. f must
// not call the view.
func (v *View) Each(f func(*siroccov1.Sandbox) bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, sb := range v.byID {
		if !f(sb) {
			return
		}
	}
}

// Len returns how many records the view holds.
func (v *View) Len() int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return len(v.byID)
}

// Await returns the first record of the sandbox, from now on, for which done
// is true. from is what the caller knows already; it may be nil. When ctx ends
// first, the newest known record comes with a Deadline fault.
func (v *View) Await(ctx context.Context, id string, from *siroccov1.Sandbox, done func(*siroccov1.Sandbox) bool) (*siroccov1.Sandbox, error) {
	ch := make(chan *siroccov1.Sandbox, 1)
	v.mu.Lock()
	if v.waiters[id] == nil {
		v.waiters[id] = map[chan *siroccov1.Sandbox]struct{}{}
	}
	v.waiters[id][ch] = struct{}{}
	now := v.byID[id]
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		delete(v.waiters[id], ch)
		if len(v.waiters[id]) == 0 {
			delete(v.waiters, id)
		}
		v.mu.Unlock()
	}()
	newest := from
	if now.GetRevision() > newest.GetRevision() {
		newest = now
	}
	// A view without ended records can't show an end that came before this call.
	if now == nil && from != nil {
		if sb, err := v.store.Get(ctx, from.GetTenant(), id); err == nil {
			newest = sb
		}
	}
	for newest == nil || !done(newest) {
		select {
		case sb := <-ch:
			if sb.GetRevision() > newest.GetRevision() {
				newest = sb
			}
		case <-ctx.Done():
			return newest, fault.From(ctx.Err())
		}
	}
	return newest, nil
}
