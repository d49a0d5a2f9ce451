package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A namespace that nobody uses any more is removed by the kernel, with its
// interfaces, in the background and many at once. That is far cheaper than to
// remove an interface by hand (tens of milliseconds, during which no other
// interface can change), which is left for those that last longer than grace:
// something still runs in their namespace.
const (
	grace     = 2 * time.Second
	pollEvery = 10 * time.Millisecond
	// cleanEvery is how often addresses are freed while there are others: to make the
	// kernel forget one costs as much as to make it forget all.
	cleanEvery = time.Second
)

// retired is a slot without a mounted namespace.
type retired struct {
	slot  *Slot
	since time.Time
}

// retire lets go of a slot's namespace; clean does the rest.
func (p *Pool) retire(s *Slot) error {
	if err := removeNetNS(s.NetNS); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dirty = append(p.dirty, retired{s, time.Now()})
	return nil
}

// clean frees the addresses of retired slots whose interfaces are gone, once the
// kernel has forgotten them too: a new holder never meets connections of the one
// before. The others stay for the next time.
func (p *Pool) clean() error {
	p.cleaning.Lock()
	defer p.cleaning.Unlock()
	p.mu.Lock()
	batch := slices.Clone(p.dirty) // others only append
	p.mu.Unlock()
	gone := 0
	for _, r := range batch { // in order: they go in order, more or less
		there, err := linkExists(p.host, r.slot.Interface)
		if there && time.Since(r.since) > grace {
			there, err = false, deleteLink(r.slot.Interface)
		}
		if err != nil {
			return err
		}
		if there {
			break
		}
		gone++
	}
	if gone == 0 {
		return nil
	}
	if err := p.forget(batch[:gone]); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dirty = slices.Delete(p.dirty, 0, gone)
	for _, r := range batch[:gone] {
		p.addrs.give(r.slot.index)
	}
	return nil
}

// forget removes what the kernel remembers of addresses.
func (p *Pool) forget(gone []retired) error {
	old := connections{}
	var addrs []netip.Addr
	for _, r := range gone {
		old[r.slot.Address] = true
		addrs = append(addrs, r.slot.Address)
	}
	if err := old.delete(p.host); err != nil {
		return err
	}
	p.rules.forget(addrs)
	return nil
}

// drain cleans until nothing is left.
func (p *Pool) drain() error {
	for deadline := time.Now().Add(3 * grace); ; time.Sleep(pollEvery) {
		if err := p.clean(); err != nil {
			return err
		}
		if left := p.Stats().Cleaning; left == 0 {
			return nil
		} else if time.Now().After(deadline) {
			return fmt.Errorf("network: %d slots can't be removed", left)
		}
	}
}

// connections selects tracked connections by who opened them.
type connections map[netip.Addr]bool

// MatchConntrackFlow is called by netlink for every tracked connection.
func (c connections) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	src, _ := netip.AddrFromSlice(flow.Forward.SrcIP)
	dst, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	return c[src.Unmap()] || c[dst.Unmap()]
}

// delete reads the whole table, as the kernel can't select by address; that is
// why it is done for many slots at once and outside of Release.
func (c connections) delete(h *netlink.Handle) error {
	const attempts = 5
	var err error
	for range attempts {
		_, err = h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, c)
		// The table changed under the dump: what is left is found the next time.
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("forget connections: %w", err)
	}
	return nil
}
