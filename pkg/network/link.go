package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Hardware addresses are locally administered and the same for every slot.
var (
	guestMAC = net.HardwareAddr{0x02, 0x73, 0x72, 0x00, 0x00, 0x02}
	hostMAC  = net.HardwareAddr{0x02, 0x73, 0x72, 0x00, 0x00, 0x01}
)

// guestLink is the name of the interface inside a namespace.
const guestLink = "eth0"

// Attributes of the kernel's interface that no library names (linux/ip.h,
// linux/if_link.h).
const (
	inetConf       = 1 // IFLA_INET_CONF
	confForwarding = 1
	confRPFilter   = 8
	inet6AddrGen   = 8 // IFLA_INET6_ADDR_GEN_MODE
	addrGenNone    = 1
)

// wire is one slot's pair of interfaces.
type wire struct {
	host             string
	gateway, address netip.Addr
	mtu              int
	outer            *netlink.Handle // in the host's namespace
}

// fill makes the pair from inside the new namespace and completes both ends; the
// other one appears in the namespace home. There is no /proc/sys involved, as
// that is read-only in a container.
//
// The host's end goes up first. An interface that goes up after its peer can
// send at once; the other one only when the kernel has got round to its carrier
// change, see carrier.
func (w wire) fill(home int) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	veth := netlink.NewVeth(netlink.NewLinkAttrs())
	veth.Name, veth.HardwareAddr, veth.MTU = guestLink, guestMAC, w.mtu
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = w.host, hostMAC, netlink.NsFd(home)
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("make interface pair %s: %w", w.host, err)
	}
	outside := make(chan error, 1)
	go func() { outside <- w.connect() }() // another goroutine, so a thread at home
	if err := <-outside; err != nil {
		return err
	}
	link, err := h.LinkByName(guestLink)
	if err != nil {
		return fmt.Errorf("find interface: %w", err)
	}
	index := link.Attrs().Index
	if err := configure(index, nil); err != nil {
		return fmt.Errorf("configure interface: %w", err)
	}
	if err := h.AddrReplace(link, onLink(w.address)); err != nil {
		return fmt.Errorf("set address: %w", err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("interface up: %w", err)
	}
	if err := h.NeighSet(known(index, w.gateway, hostMAC)); err != nil {
		return fmt.Errorf("set gateway's hardware address: %w", err)
	}
	if err := h.RouteReplace(&netlink.Route{LinkIndex: index, Gw: w.gateway.AsSlice()}); err != nil {
		return fmt.Errorf("set default route: %w", err)
	}
	return w.carrier()
}

// connect completes the host's end.
func (w wire) connect() error {
	link, err := w.outer.LinkByName(w.host)
	if err != nil {
		return fmt.Errorf("find %s: %w", w.host, err)
	}
	index := link.Attrs().Index
	// Strict reverse path filtering is a second check of source addresses.
	if err := configure(index, map[int]uint32{confForwarding: 1, confRPFilter: 1}); err != nil {
		return fmt.Errorf("configure %s: %w", w.host, err)
	}
	if err := w.outer.LinkSetARPOff(link); err != nil {
		return fmt.Errorf("switch ARP off on %s: %w", w.host, err)
	}
	if err := w.outer.AddrReplace(link, onLink(w.gateway)); err != nil {
		return fmt.Errorf("set address of %s: %w", w.host, err)
	}
	if err := w.outer.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s up: %w", w.host, err)
	}
	if err := w.outer.NeighSet(known(index, w.address, guestMAC)); err != nil {
		return fmt.Errorf("set hardware address on %s: %w", w.host, err)
	}
	return nil
}

// carrier waits until the host's end can send. The kernel notices a carrier in
// the background, up to a second late, and until then throws packets away
// silently; since Linux 6.3 it does so before it answers this question.
func (w wire) carrier() error {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		link, err := w.outer.LinkByName(w.host)
		if err != nil {
			return fmt.Errorf("find %s: %w", w.host, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has no carrier", w.host)
		}
	}
}

func onLink(a netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(31, 32)}}
}

func known(index int, a netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
}

// configure sets IPv4 settings of an interface in the calling thread's
// namespace, and keeps IPv6 from making an address for it.
func configure(index int, conf map[int]uint32) error {
	if len(conf) > 0 {
		attr := nl.NewRtAttr(inetConf, nil)
		for k, v := range conf {
			attr.AddRtAttr(k, nl.Uint32Attr(v))
		}
		if err := setFamily(index, unix.AF_INET, attr); err != nil {
			return err
		}
	}
	err := setFamily(index, unix.AF_INET6, nl.NewRtAttr(inet6AddrGen, nl.Uint8Attr(addrGenNone)))
	if errors.Is(err, unix.EAFNOSUPPORT) { // no IPv6 in this kernel
		return nil
	}
	return err
}

// forward switches forwarding on for an uplink and leaves the rest of it alone.
func forward(index int) error {
	attr := nl.NewRtAttr(inetConf, nil)
	attr.AddRtAttr(confForwarding, nl.Uint32Attr(1))
	return setFamily(index, unix.AF_INET, attr)
}

// setFamily sets what an address family keeps about an interface.
func setFamily(index, family int, attr *nl.RtAttr) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(family, nil).AddChild(attr)
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// deleteLink removes a host interface, and with it the pair. One that is not
// there is no error.
func deleteLink(name string) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}

func linkExists(h *netlink.Handle, name string) (bool, error) {
	_, err := h.LinkByName(name)
	if err == nil {
		return true, nil
	}
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return false, nil
	}
	return false, fmt.Errorf("find interface %s: %w", name, err)
}

// hostLinks returns the indexes of the node's interfaces.
func (n names) hostLinks(h *netlink.Handle) (map[int]bool, error) {
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	found := map[int]bool{}
	for _, l := range links {
		if i, ok := n.index(l.Attrs().Name); ok && strings.HasPrefix(l.Attrs().Name, n.prefix) {
			found[i] = true
		}
	}
	return found, nil
}
