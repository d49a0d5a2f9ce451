package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks routes of ours ('s').
const routeProtocol netlink.RouteProtocol = 115

// open prepares the machine once: lock, range, forwarding, and the table with
// the slots that live on from before. What is left of others is removed. It may
// be called again after an error.
func (p *Pool) open() error {
	p.opening.Lock()
	defer p.opening.Unlock()
	p.mu.Lock()
	opened, closed := p.opened, p.closed
	p.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if opened {
		return nil
	}
	if os.Geteuid() != 0 {
		return &SetupError{What: "not root", Remedy: "start the node agent as root"}
	}
	for _, dir := range []string{p.names.dir, p.names.netnsDir(), p.names.idDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return &SetupError{What: "no folder for network state", Remedy: "choose a state folder that can be written", Err: err}
		}
	}
	lock, err := lockFile(p.names.lockFile())
	if err != nil {
		return err
	}
	if err := p.prepare(); err != nil {
		_ = lock.Close()
		if p.host != nil {
			p.host.Close()
			p.host = nil
		}
		if p.rules != nil {
			err = errors.Join(err, p.rules.close())
		}
		return err
	}
	p.lock = lock
	p.mu.Lock()
	p.opened = true
	p.mu.Unlock()
	return nil
}

func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, &SetupError{What: "no folder for network state", Remedy: "choose a state folder that can be written", Err: err}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, &SetupError{What: "another agent of the same name runs on this machine", Remedy: "stop it, or give each agent its own name", Err: err}
	}
	return f, nil
}

func (p *Pool) prepare() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return &SetupError{What: "no netlink", Remedy: "run on Linux with CAP_NET_ADMIN", Err: err}
	}
	p.host = h
	own, taken, err := survey(h)
	if err != nil {
		return err
	}
	if p.dns = p.cfg.DNS; len(p.dns) == 0 {
		p.dns = resolvers(readResolvConfs(), own)
	}
	if p.cidr, err = p.claim(append(taken, singles(p.dns)...)); err != nil {
		return err
	}
	if p.mtu, err = p.uplinks(); err != nil {
		return err
	}
	p.mu.Lock() // Stats may be asked meanwhile
	p.addrs = newAddresses(p.cidr)
	p.mu.Unlock()
	p.rules = newRules(p.cfg, p.names, p.cidr)
	return p.recover()
}

// survey returns the machine's addresses and all ranges it has routes to.
func survey(h *netlink.Handle) (own []netip.Addr, taken []netip.Prefix, err error) {
	addrs, err := h.AddrList(nil, unix.AF_INET)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			own = append(own, ip)
			taken = append(taken, netip.PrefixFrom(ip, 32))
		}
	}
	routes, err := h.RouteListFiltered(unix.AF_INET, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		if ip, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok && ones > 0 {
			taken = append(taken, netip.PrefixFrom(ip, ones))
		}
	}
	return own, taken, nil
}

func singles(addrs []netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// claim decides on the node's range and reserves it with a route, which also
// keeps packets to addresses without a slot from leaving the machine. The kernel
// takes a route only once, so two agents never get the same range.
func (p *Pool) claim(taken []netip.Prefix) (netip.Prefix, error) {
	kept, ok := p.names.readRange()
	if ok && (!p.cfg.CIDR.IsValid() || p.cfg.CIDR == kept) {
		if err := p.host.RouteAdd(reservation(kept)); err != nil && !errors.Is(err, unix.EEXIST) {
			return kept, fmt.Errorf("reserve range %s: %w", kept, err)
		}
		return kept, nil
	}
	if ok {
		if known, _, err := p.names.entries(); err != nil || len(known) > 0 {
			return kept, errors.Join(err, &SetupError{
				What:   fmt.Sprintf("range changes from %s to %s while sandboxes live in it", kept, p.cfg.CIDR),
				Remedy: "end the node's sandboxes first, or keep the range",
			})
		}
		if err := p.host.RouteDel(reservation(kept)); err != nil && !errors.Is(err, unix.ESRCH) {
			return kept, fmt.Errorf("give up range %s: %w", kept, err)
		}
	}
	wanted := candidates(p.cfg.Node)
	if p.cfg.CIDR.IsValid() {
		wanted = []netip.Prefix{p.cfg.CIDR}
	}
	for _, r := range free(wanted, taken) {
		err := p.host.RouteAdd(reservation(r))
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return r, &SetupError{What: "can't reserve range " + r.String(), Remedy: "run with CAP_NET_ADMIN", Err: err}
		}
		return r, writeFile(p.names.rangeFile(), []byte(r.String()+"\n"))
	}
	return netip.Prefix{}, &SetupError{
		What:   fmt.Sprintf("no free range for sandboxes (%d tried): every one overlaps a route or an address of this machine", len(wanted)),
		Remedy: "configure one that is free",
	}
}

func reservation(r netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Dst:  &net.IPNet{IP: r.Addr().AsSlice(), Mask: net.CIDRMask(r.Bits(), 32)},
		Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol,
	}
}

// uplinks switches forwarding on for the interfaces packets leave through, and
// those that lead to resolvers, and returns the smallest MTU among the former.
func (p *Pool) uplinks() (mtu int, err error) {
	found, err := uplinks(p.host, p.cfg.Uplink)
	if err != nil {
		return 0, err
	}
	mtu = 1500
	if len(found) == 0 {
		p.log.Warn("this machine has no default route: sandboxes will have no way out", "remedy", "restart the agent once it has one")
	}
	forwarding := map[int]string{}
	for _, l := range found {
		forwarding[l.Attrs().Index] = l.Attrs().Name
		mtu = min(mtu, l.Attrs().MTU)
	}
	for _, a := range p.dns { // answers of resolvers may come in elsewhere
		routes, err := p.host.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && p.cfg.Uplink == "" {
			forwarding[routes[0].LinkIndex] = "the way to resolver " + a.String()
		}
	}
	for index, name := range forwarding {
		if err := forward(index); err != nil {
			return 0, &SetupError{What: "can't switch forwarding on for " + name, Remedy: "run with CAP_NET_ADMIN", Err: err}
		}
	}
	return max(mtu, 576), nil
}

// uplinks returns the named interface, or without a name those with a default
// route in the main table.
func uplinks(h *netlink.Handle, name string) ([]netlink.Link, error) {
	if name != "" {
		l, err := h.LinkByName(name)
		if err != nil {
			return nil, &SetupError{What: "uplink " + name + " does not exist", Remedy: "name another, or none", Err: err}
		}
		return []netlink.Link{l}, nil
	}
	routes, err := h.RouteList(nil, unix.AF_INET)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var indexes []int
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 || !r.Dst.IP.IsUnspecified() {
				continue
			}
		}
		indexes = append(indexes, r.LinkIndex)
		for _, hop := range r.MultiPath {
			indexes = append(indexes, hop.LinkIndex)
		}
	}
	slices.Sort(indexes)
	var out []netlink.Link
	for _, i := range slices.Compact(indexes) {
		if i == 0 {
			continue
		}
		l, err := h.LinkByIndex(i)
		if err != nil {
			return nil, fmt.Errorf("find uplink: %w", err)
		}
		out = append(out, l)
	}
	return out, nil
}
