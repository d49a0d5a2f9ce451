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
	waiters map[string]map[*Expectation]struct{}
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
		waiters: map[string]map[*Expectation]struct{}{},
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
		if sb, err := decode(entry.Key(), entry.Value(), entry.Revision()); err == nil {
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
		for e := range v.waiters[id] {
			e.see(sb)
		}
	}
	v.mu.Unlock()
	if v.onChange != nil && (old != nil || sb != nil) {
		v.onChange(old, sb)
	}
}

// Expectation is something that a record is to show. The view's lock guards what
// is in it.
type Expectation struct {
	view   *View
	id     string
	done   func(*siroccov1.Sandbox) bool
	newest *siroccov1.Sandbox
	// found is closed when newest is what was expected; it stays from then on.
	found chan struct{}
}

// see judges a revision. Each one is looked at, because what is expected may be
// overwritten a moment later.
func (e *Expectation) see(sb *siroccov1.Sandbox) {
	select {
	case <-e.found:
		return
	default:
	}
	if e.newest != nil && sb.GetRevision() <= e.newest.GetRevision() {
		return
	}
	e.newest = sb
	if e.done(sb) {
		close(e.found)
	}
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
// is true: see Expect and Wait.
func (v *View) Await(ctx context.Context, id string, from *siroccov1.Sandbox, done func(*siroccov1.Sandbox) bool) (*siroccov1.Sandbox, error) {
	e := v.Expect(id, from, done)
	defer e.Drop()
	return e.Wait(ctx)
}

// Expect begins to look for a record of the sandbox for which done is true. Every
// revision that reaches the view from now on is shown to done, which must not
// call the view: also one that others overwrite at once. from is what the caller
// knows already; it may be nil. The caller drops what it gets.
func (v *View) Expect(id string, from *siroccov1.Sandbox, done func(*siroccov1.Sandbox) bool) *Expectation {
	e := &Expectation{view: v, id: id, done: done, found: make(chan struct{})}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.waiters[id] == nil {
		v.waiters[id] = map[*Expectation]struct{}{}
	}
	v.waiters[id][e] = struct{}{}
	for _, known := range []*siroccov1.Sandbox{from, v.byID[id]} {
		if known != nil {
			e.see(known)
		}
	}
	return e
}

// Wait returns the record that was expected. When ctx ends first, the newest
// known record, which may be nil, comes with a Deadline fault.
func (e *Expectation) Wait(ctx context.Context) (*siroccov1.Sandbox, error) {
	// A view without ended records can't show an end that came before Expect.
	if known := e.known(); !e.view.keepEnded && known != nil && e.view.Lookup(e.id) == nil {
		if sb, err := e.view.store.Get(ctx, known.GetTenant(), e.id); err == nil {
			e.view.mu.Lock()
			e.see(sb)
			e.view.mu.Unlock()
		}
	}
	select {
	case <-e.found:
		return e.known(), nil
	case <-ctx.Done():
		return e.known(), fault.From(ctx.Err())
	}
}

// Drop ends the looking. It may be called more than once.
func (e *Expectation) Drop() {
	v := e.view
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.waiters[e.id], e)
	if len(v.waiters[e.id]) == 0 {
		delete(v.waiters, e.id)
	}
}

func (e *Expectation) known() *siroccov1.Sandbox {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	return e.newest
}
