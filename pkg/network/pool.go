package network

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// Pool makes and keeps the slots of one node. Use New.
type Pool struct {
	cfg   Config
	names names
	log   *slog.Logger
	wake  chan struct{} // Run has something to do

	opening  sync.Mutex // held while the machine is prepared or given up
	cleaning sync.Mutex // held by clean

	mu     sync.Mutex // guards what follows; never held over a system call
	opened bool
	closed bool
	addrs  *addresses
	ready  []*Slot
	held   map[string]*Slot
	busy   map[string]bool // ids with a call under way
	dirty  []retired       // slots that are being removed
	making int

	// Set once by open, constant afterwards.
	host  *netlink.Handle
	rules *rules
	lock  *os.File
	cidr  netip.Prefix
	dns   []netip.Addr
	mtu   int
}

// Stats counts a pool's slots.
type Stats struct {
	// Ready slots wait for a sandbox; Held ones have one.
	Ready, Held int
	// Cleaning are slots that are gone and whose addresses are not free yet.
	Cleaning int
	// Capacity is the number of slots the range has room for.
	Capacity int
}

// New checks the configuration and does nothing else. Errors: ErrConfig.
func New(cfg Config) (*Pool, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	return &Pool{
		cfg: cfg, names: cfg.names(), log: cfg.Logger.With("node", cfg.Node),
		wake: make(chan struct{}, 1), held: map[string]*Slot{}, busy: map[string]bool{},
	}, nil
}

// Run keeps slots ready and cleans up after released ones, until ctx ends; it
// then returns nil. It fails only if the machine can't be prepared (SetupError).
// Without Run everything works too, but every Acquire makes its slot itself.
func (p *Pool) Run(ctx context.Context) error {
	if err := p.open(); err != nil {
		return err
	}
	const retry = time.Second // after a failure; grows up to 30 times
	delay := retry
	timer := time.NewTimer(guardEvery)
	defer timer.Stop()
	guarded, cleaned := time.Now(), time.Now()
	for ctx.Err() == nil {
		if time.Since(guarded) >= guardEvery {
			guarded = time.Now()
			p.guard()
		}
		again, err := p.work(&cleaned)
		pause, wake := guardEvery, p.wake
		if p.Stats().Cleaning > 0 {
			pause = cleanEvery
		}
		switch {
		case err != nil:
			p.log.Error("network slots can't be prepared", "err", err, "retry_in", delay)
			pause, wake = delay, nil
			delay = min(2*delay, 30*retry)
		case again:
			delay = retry
			continue
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
		case <-wake:
		case <-timer.C:
		}
	}
	return nil
}

// guardEvery is how often the table is looked after.
const guardEvery = time.Second

func (p *Pool) guard() {
	restored, err := p.rules.guard()
	if err != nil {
		p.log.Error("sandboxes' firewall table can't be restored", "err", err)
	} else if restored {
		p.log.Error("somebody changed the sandboxes' firewall table; it is restored", "table", p.names.table)
	}
}

// work does one thing that is due; false if nothing is. It keeps when it has
// cleaned.
func (p *Pool) work(cleaned *time.Time) (bool, error) {
	p.mu.Lock()
	short := !p.closed && len(p.ready)+p.making < p.cfg.PoolSize
	p.mu.Unlock()
	if short {
		s, err := p.make()
		if err != nil {
			return false, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.closed { // Close did not see it
			return false, p.retire(s)
		}
		p.making--
		p.ready = append(p.ready, s)
		return true, nil
	}
	if time.Since(*cleaned) < cleanEvery {
		return false, nil
	}
	*cleaned = time.Now()
	return false, p.clean()
}

// make takes an address and builds its slot. On success making counts it until
// the caller has put it somewhere.
func (p *Pool) make() (*Slot, error) {
	p.mu.Lock()
	index, ok := p.addrs.take()
	for deadline := time.Now().Add(2 * grace); !ok && len(p.dirty) > 0 && time.Now().Before(deadline); {
		p.mu.Unlock()
		time.Sleep(pollEvery) // the kernel removes interfaces in its own time
		if err := p.clean(); err != nil {
			return nil, err
		}
		p.mu.Lock()
		index, ok = p.addrs.take()
	}
	if !ok {
		p.mu.Unlock()
		return nil, fmt.Errorf("%w: all %d of %s are taken", ErrExhausted, p.addrs.size(), p.cidr)
	}
	p.making++
	p.mu.Unlock()
	s := p.slot(index)
	if err := p.build(s); err != nil {
		p.mu.Lock()
		p.making--
		p.dirty = append(p.dirty, retired{s, time.Now()})
		p.mu.Unlock()
		return nil, err
	}
	return s, nil
}

// Acquire gives a slot to the sandbox id under a policy. It is instant when one
// is ready; otherwise the slot is made now. On an error the id holds nothing.
// Errors: ErrExists, ErrBusy, ErrPolicy, ErrExhausted, ErrClosed, SetupError.
func (p *Pool) Acquire(ctx context.Context, id string, policy Policy) (*Slot, error) {
	policy, err := policy.normal()
	if err != nil {
		return nil, err
	}
	if !slotID.MatchString(id) {
		return nil, fmt.Errorf("%w: id %q: want letters, digits, '-' and '_', at most 128", ErrConfig, id)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := p.open(); err != nil {
		return nil, err
	}
	s, err := p.reserve(id)
	if err != nil {
		return nil, err
	}
	defer p.poke()
	if s == nil {
		if s, err = p.make(); err != nil {
			p.settle(id, nil)
			return nil, fmt.Errorf("acquire network for %s: %w", id, err)
		}
		p.mu.Lock()
		p.making--
		p.mu.Unlock()
	}
	s.ID, s.Policy = id, policy
	err = p.names.writeEntry(id, entry{Index: s.index, Policy: policy, DNS: s.DNS, MTU: s.MTU})
	if err == nil {
		err = p.rules.add(s)
	}
	if err != nil {
		if undo := p.drop(s); undo != nil {
			p.log.Error("network slot can't be removed", "slot", s.Interface, "err", undo)
		}
		p.settle(id, nil)
		return nil, fmt.Errorf("acquire network for %s: %w", id, err)
	}
	p.settle(id, s)
	return s, nil
}

// reserve marks the id busy and returns a ready slot, nil if there is none.
func (p *Pool) reserve(id string) (*Slot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, ErrClosed
	case p.busy[id]:
		return nil, fmt.Errorf("%w: %s", ErrBusy, id)
	case p.held[id] != nil:
		return nil, fmt.Errorf("%w: %s", ErrExists, id)
	}
	p.busy[id] = true
	if len(p.ready) == 0 {
		return nil, nil
	}
	s := p.ready[0]
	p.ready = p.ready[1:]
	return s, nil
}

// settle ends a call for an id, which now holds s or, if nil, nothing.
func (p *Pool) settle(id string, s *Slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.busy, id)
	if s == nil {
		delete(p.held, id)
	} else {
		p.held[id] = s
	}
}

// Get returns the slot that id holds, nil if none.
func (p *Pool) Get(id string) *Slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[id]
}

// Release shuts the sandbox's slot off and removes it. When it returns nil the
// slot can reach nothing any more, whatever still runs inside, and its namespace
// is no longer to be found; the kernel removes the interfaces shortly after. The
// address is free again only when they are gone and the kernel has forgotten the
// connections. An id that holds nothing is no error; after an error Release can
// be called again. It does not end early when ctx does, as it takes about a
// millisecond. Errors: ErrBusy, ErrClosed, SetupError.
func (p *Pool) Release(_ context.Context, id string) error {
	if err := p.open(); err != nil {
		return err
	}
	p.mu.Lock()
	s := p.held[id]
	if s == nil || p.busy[id] || p.closed {
		defer p.mu.Unlock()
		if p.busy[id] {
			return fmt.Errorf("%w: %s", ErrBusy, id)
		}
		if p.closed {
			return ErrClosed
		}
		return nil
	}
	p.busy[id] = true
	p.mu.Unlock()
	if err := p.drop(s); err != nil {
		p.settle(id, s)
		return fmt.Errorf("release network of %s: %w", id, err)
	}
	p.settle(id, nil)
	p.poke()
	return nil
}

// drop removes a slot that has or may have rules and an entry. The entry goes
// last: until then a restarted agent knows whose it was.
func (p *Pool) drop(s *Slot) error {
	if err := p.rules.remove(s); err != nil {
		return err
	}
	if err := p.retire(s); err != nil {
		return err
	}
	return p.names.removeEntry(s.ID)
}

// Stats counts the slots now.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := Stats{Ready: len(p.ready), Held: len(p.held), Cleaning: len(p.dirty)}
	if p.addrs != nil {
		st.Capacity = p.addrs.size()
	}
	return st
}

func (p *Pool) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}
