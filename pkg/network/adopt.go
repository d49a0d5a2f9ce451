package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
)

// recover finds the slots that live on from before, whole, and installs the
// table with them; everything else of the node's is removed. Slots that were
// ready are among that: nothing proves that none was ever used.
func (p *Pool) recover() error {
	known, broken, err := p.names.entries()
	if err != nil {
		return fmt.Errorf("read network state: %w", err)
	}
	links, err := p.names.hostLinks(p.host)
	if err != nil {
		return err
	}
	held := map[string]*Slot{}
	dns := slices.Clone(p.dns)
	for id, e := range known {
		if !links[e.Index] || !isNetNS(p.names.netns(e.Index)) || !p.addrs.reserve(e.Index) {
			p.log.Warn("the network slot of a sandbox is gone", "sandbox", id, "slot", e.Index)
			broken = append(broken, id)
			continue
		}
		s := p.slot(e.Index)
		s.ID, s.Policy, s.DNS, s.MTU = id, e.Policy, e.DNS, e.MTU
		held[id] = s
		for _, a := range e.DNS {
			// A sandbox goes on with the resolvers it was told of.
			if !slices.Contains(dns, a) && !p.cidr.Contains(a) {
				dns = append(dns, a)
			}
		}
	}
	if err := p.rules.install(dns, held); err != nil {
		return &SetupError{
			What:   "the kernel refuses the firewall rules",
			Remedy: "use Linux 5.13 or later with nf_tables (inet), nft_ct, nft_fib_inet, nft_masq, nft_limit, nft_connlimit, nft_reject_inet and CAP_NET_ADMIN",
			Err:    err,
		}
	}
	p.mu.Lock()
	p.held = held
	p.mu.Unlock()
	for _, id := range broken {
		if err := p.names.removeEntry(id); err != nil {
			return fmt.Errorf("remove network state of %s: %w", id, err)
		}
	}
	_, err = p.leftovers()
	return err
}

// leftovers removes interfaces and namespaces that no slot accounts for, and
// returns their names. Their addresses are cleaned before they are used.
func (p *Pool) leftovers() ([]string, error) {
	links, err := p.names.hostLinks(p.host)
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir(p.names.netnsDir())
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	for _, f := range files {
		if i, ok := p.names.index(f.Name()); ok {
			links[i] = true
		}
	}
	var removed []string
	for _, i := range slices.Sorted(maps.Keys(links)) {
		// An index that can be reserved belongs to nobody; now it is ours.
		p.mu.Lock()
		orphan := p.addrs.reserve(i)
		p.mu.Unlock()
		if !orphan && i < p.addrs.size() {
			continue
		}
		s := p.slot(i)
		if err := p.retire(s); err != nil {
			return removed, err
		}
		removed = append(removed, "network slot "+s.Interface)
	}
	return removed, nil
}

// Adopt returns the slots of those of the given sandboxes that have one, by id.
// Call it after a restart; it does not take anything from the others, see Sweep.
// Errors: SetupError, ErrClosed.
func (p *Pool) Adopt(_ context.Context, ids []string) (map[string]*Slot, error) {
	if err := p.open(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]*Slot{}
	for _, id := range ids {
		if s := p.held[id]; s != nil {
			out[id] = s
		}
	}
	return out, nil
}

// Sweep releases the slots of all sandboxes but the living ones, and removes
// interfaces, namespaces and table entries that belong to no slot; a table that
// somebody removed is restored. It returns
// what it removed, one line each. An id whose Acquire has not returned when
// Sweep starts is left alone. Errors: SetupError, ErrClosed.
func (p *Pool) Sweep(ctx context.Context, living []string) ([]string, error) {
	if err := p.open(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	var dead []string
	for id := range p.held {
		if !slices.Contains(living, id) && !p.busy[id] {
			dead = append(dead, id)
		}
	}
	p.mu.Unlock()
	slices.Sort(dead)
	var removed []string
	for _, id := range dead {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		switch err := p.Release(ctx, id); {
		case errors.Is(err, ErrBusy):
		case err != nil:
			return removed, err
		default:
			removed = append(removed, "network slot of "+id)
		}
	}
	restored, err := p.rules.guard()
	if err != nil {
		return removed, err
	}
	if restored {
		removed = append(removed, "foreign change of table "+p.names.table)
	}
	more, err := p.leftovers()
	removed = append(removed, more...)
	if err != nil {
		return removed, err
	}
	p.poke()
	return removed, nil
}

// Close removes the slots that nobody holds and leaves the held ones as they
// are, for a later Pool. It waits until the removed ones are gone, usually for some
// ten milliseconds. If there are none, everything the pool made on the
// machine is removed, except that forwarding stays on. Call it after Run has
// returned. It may be called again.
func (p *Pool) Close() error {
	p.opening.Lock()
	defer p.opening.Unlock()
	p.mu.Lock()
	if p.closed || !p.opened {
		p.closed = true
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	ready := p.ready
	p.ready = nil
	last := len(p.held) == 0 && len(p.busy) == 0
	p.mu.Unlock()

	var errs []error
	for _, s := range ready {
		errs = append(errs, p.retire(s))
	}
	errs = append(errs, p.drain())
	if last {
		errs = append(errs, p.rules.uninstall(), p.host.RouteDel(reservation(p.cidr)), p.names.remove())
	}
	p.host.Close()
	errs = append(errs, p.rules.close(), p.lock.Close())
	return errors.Join(errs...)
}

// Range returns the node's range; it is valid once a slot has been acquired or
// adopted, or Run has started.
func (p *Pool) Range() netip.Prefix {
	p.opening.Lock()
	defer p.opening.Unlock()
	return p.cidr
}
