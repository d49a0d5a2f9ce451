package network

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forbidden lists what no policy may open, by name. The test's host itself
// reaches all of it, so a refusal is the doing of the rules.
var forbidden = map[string]string{
	"lan": lanPeer + ":80", "lan on 53": lanPeer + ":53", "resolver on 80": lanDNS + ":80",
	"host in lan": hostLAN + ":80", "host's public address": hostWAN + ":80",
	"metadata": metadata + ":80", "metadata as resolver": metadata + ":53", "azure": azure + ":80", "documentation": docNet + ":80",
	"shared space": cgnat + ":80", "10/8": "10.99.0.9:80", "172.16/12": "172.20.0.9:80",
}

func checkForbidden(t *testing.T, s *Slot) {
	t.Helper()
	for _, target := range forbidden {
		cantReach(t, s, "tcp", target)
	}
	cantReach(t, s, "udp", lanPeer+":53")
	cantReach(t, s, "tcp", s.Gateway.String()+":80")
	cantReach(t, s, "tcp", "[2001:db8::1]:80")
}

func TestForbiddenTargetsExist(t *testing.T) {
	newWorld(t)
	for name, target := range forbidden {
		if _, err := reach("", "tcp", target); err != nil {
			t.Errorf("%s (%s) can't be reached from the host, so the other tests prove nothing: %v", name, target, err)
		}
	}
	if _, err := reach("", "udp", lanPeer+":53"); err != nil {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a"})
	s := acquire(t, p, "sb-1", Policy{Mode: Open})
	canReach(t, s, "tcp", site+":80")
	canReach(t, s, "udp", site+":80")
	canReach(t, s, "tcp", otherSite+":80")
	canReach(t, s, "udp", lanDNS+":53")
	canReach(t, s, "tcp", lanDNS+":53")
	checkForbidden(t, s)
	seen, err := reach(s.NetNS, "tcp", site+":80")
	check(t, err)
	if host, _, _ := net.SplitHostPort(seen); strings.TrimPrefix(host, "::ffff:") != hostWAN {
		t.Errorf("the site sees %s, want the host's address", seen)
	}
}

func TestRefusalIsQuick(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a"})
	s := acquire(t, p, "sb-1", Policy{Mode: Blocked})
	_, err := reach(s.NetNS, "tcp", site+":80")
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a blocked connection ends with %v, want a refusal", err)
	}
}

func TestBlocked(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a"})
	s := acquire(t, p, "sb-1", Policy{Mode: Blocked})
	for _, network := range []string{"tcp", "udp"} {
		cantReach(t, s, network, site+":80")
		cantReach(t, s, network, site+":53")
		cantReach(t, s, network, lanDNS+":53")
	}
	checkForbidden(t, s)
}

func TestAllowed(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a"})
	s := acquire(t, p, "sb-1", Policy{Mode: Allowed, Allowed: prefixes(
		"93.184.216.0/24", "93.184.216.34/32", "10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16", "8.0.0.2/32", "168.63.129.16/32")})
	canReach(t, s, "tcp", site+":80")
	canReach(t, s, "udp", site+":80")
	canReach(t, s, "udp", lanDNS+":53")
	cantReach(t, s, "tcp", otherSite+":80")
	checkForbidden(t, s)

	all := acquire(t, p, "sb-2", Policy{Mode: Allowed, Allowed: prefixes("0.0.0.0/0")})
	canReach(t, all, "tcp", otherSite+":80")
	checkForbidden(t, all)

	none := acquire(t, p, "sb-3", Policy{Mode: Allowed})
	cantReach(t, none, "tcp", site+":80")
	canReach(t, none, "udp", lanDNS+":53")
}

func TestDeny(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a", Deny: prefixes("45.33.0.0/16", "2001:db8::/32")})
	s := acquire(t, p, "sb-1", Policy{Mode: Open})
	canReach(t, s, "tcp", site+":80")
	cantReach(t, s, "tcp", otherSite+":80")
}

func TestUplinkIsTheOnlyWayOut(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a", Uplink: "lan0"})
	s := acquire(t, p, "sb-1", Policy{Mode: Open})
	cantReach(t, s, "tcp", site+":80")
	canReach(t, s, "udp", lanDNS+":53")
}

func TestSandboxesDoNotReachEachOther(t *testing.T) {
	w := newWorld(t)
	a, b := newPool(t, Config{Node: "a"}), newPool(t, Config{Node: "b"})
	s1, s2 := acquire(t, a, "sb-1", Policy{Mode: Open}), acquire(t, a, "sb-2", Policy{Mode: Open})
	other := acquire(t, b, "sb-3", Policy{Mode: Allowed, Allowed: prefixes("0.0.0.0/0")})
	if a.Range().Overlaps(b.Range()) {
		t.Fatalf("ranges %s and %s overlap", a.Range(), b.Range())
	}
	for _, s := range []*Slot{s1, s2, other} {
		serve(t, s.NetNS, 80)
		if _, err := reach(s.NetNS, "tcp", s.Address.String()+":80"); err != nil {
			t.Fatalf("nothing listens in %s: %v", s.ID, err)
		}
	}
	for _, from := range []*Slot{s1, s2, other} {
		for _, to := range []*Slot{s1, s2, other} {
			if from != to {
				cantReach(t, from, "tcp", to.Address.String()+":80")
				cantReach(t, from, "tcp", to.Gateway.String()+":80")
			}
		}
		// Nor does anybody else reach them.
		if _, err := reach("", "tcp", from.Address.String()+":80"); err == nil {
			t.Errorf("the host reaches %s", from.ID)
		}
	}
	check(t, within(w.lan, func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: must(netlink.ParseIPNet("100.64.0.0/10")), Gw: net.ParseIP(hostLAN)})
	}))
	if _, err := reach(w.lan, "tcp", s1.Address.String()+":80"); err == nil {
		t.Error("the LAN reaches a sandbox")
	}
}

// TestSpoofing sends from wrong addresses and then from the right one; the server
// must see only the last, and the kernel keeps the order.
func TestSpoofing(t *testing.T) {
	w := newWorld(t)
	p := newPool(t, Config{Node: "a"})
	s, victim := acquire(t, p, "sb-1", Policy{Mode: Open}), acquire(t, p, "sb-2", Policy{Mode: Open})
	var server net.PacketConn
	check(t, within(w.internet, func() (err error) {
		server, err = net.ListenPacket("udp", site+":7777")
		return err
	}))
	defer server.Close()
	wrong := []string{victim.Address.String(), "8.8.4.4", hostWAN, lanPeer, s.Gateway.String()}
	check(t, within(s.NetNS, func() error {
		link := must(netlink.LinkByName(guestLink))
		for _, a := range append(wrong, s.Address.String()) {
			if a != s.Address.String() {
				check(t, netlink.AddrAdd(link, must(netlink.ParseAddr(a+"/32"))))
			}
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(a)}}
			c, err := d.Dial("udp", site+":7777")
			if err != nil {
				return err
			}
			if _, err := c.Write([]byte(a)); err != nil {
				return err
			}
			_ = c.Close()
		}
		return nil
	}))
	buf := make([]byte, 64)
	check(t, server.SetReadDeadline(time.Now().Add(10*time.Second)))
	n, _, err := server.ReadFrom(buf)
	check(t, err)
	if got := string(buf[:n]); got != s.Address.String() {
		t.Errorf("a packet from %s got out", got)
	}
	canReach(t, victim, "tcp", site+":80")
}

func TestIPv6IsOff(t *testing.T) {
	newWorld(t)
	h := hostHandle(t)
	up := must(h.LinkByName("up0"))
	check(t, h.AddrAdd(up, must(netlink.ParseAddr("2001:db8::2/64"))))
	p := newPool(t, Config{Node: "a"})
	s := acquire(t, p, "sb-1", Policy{Mode: Open})
	outside := must(h.LinkByName(s.Interface))
	for where, list := range map[string][]netlink.Addr{
		"host": must(h.AddrList(outside, unix.AF_INET6)),
		"slot": func() (list []netlink.Addr) {
			check(t, within(s.NetNS, func() (err error) {
				list, err = netlink.AddrList(must(netlink.LinkByName(guestLink)), unix.AF_INET6)
				return err
			}))
			return list
		}(),
	} {
		if len(list) > 0 {
			t.Errorf("IPv6 addresses on the side of the %s: %v", where, list)
		}
	}
	// Even with addresses and routes of its own and forwarding on, nothing passes.
	check(t, h.AddrAdd(outside, &netlink.Addr{IPNet: must(netlink.ParseIPNet("2001:db8:1::1/64")), Flags: unix.IFA_F_NODAD}))
	check(t, within(s.NetNS, func() error {
		link := must(netlink.LinkByName(guestLink))
		check(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: must(netlink.ParseIPNet("2001:db8:1::2/64")), Flags: unix.IFA_F_NODAD}))
		check(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: unix.AF_INET6, State: netlink.NUD_PERMANENT, IP: net.ParseIP("2001:db8:1::1"), HardwareAddr: hostMAC}))
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP("2001:db8:1::1")})
	}))
	cantReach(t, s, "tcp", "[2001:db8:1::1]:80")
	cantReach(t, s, "tcp", "[2001:db8::1]:80")
}

// TestNoARP: the host answers no question about addresses, and does not listen
// to what a sandbox says about them.
func TestNoARP(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a"})
	s, other := acquire(t, p, "sb-1", Policy{Mode: Open}), acquire(t, p, "sb-2", Policy{Mode: Open})
	canReach(t, s, "tcp", site+":80")
	check(t, within(s.NetNS, func() error {
		link := must(netlink.LinkByName(guestLink))
		return netlink.NeighDel(known(link.Attrs().Index, s.Gateway, hostMAC))
	}))
	cantReach(t, s, "tcp", site+":80")
	canReach(t, other, "tcp", site+":80")
}

func TestIPOptionsAreDropped(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a"})
	s := acquire(t, p, "sb-1", Policy{Mode: Open})
	err := within(s.NetNS, func() error {
		d := net.Dialer{Timeout: patience, Control: func(_, _ string, c syscall.RawConn) (err error) {
			ctl := c.Control(func(fd uintptr) {
				err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, "\x01\x01\x01\x01")
			})
			check(t, ctl)
			return err
		}}
		c, err := d.Dial("tcp", site+":80")
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("a packet with IP options: %v, want silence", err)
	}
}

// TestTranslationByTheMachine: rules such as Docker's that send a public address
// elsewhere don't lead around the policy; a cluster's DNS service works.
func TestTranslationByTheMachine(t *testing.T) {
	newWorld(t)
	const service = "10.96.0.10"
	c := must(nftables.New())
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "machine"})
	chain := c.AddChain(&nftables.Chain{Table: table, Name: "dnat", Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	for from, to := range map[string]string{"45.33.32.200": lanPeer, "45.33.32.201": otherSite, service: lanPeer} {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: concat(
			daddr(reg1), cmp(expr.CmpOpEq, netip.MustParseAddr(from).AsSlice()),
			one(&expr.Immediate{Register: reg1, Data: netip.MustParseAddr(to).AsSlice()}),
			one(&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1}))})
	}
	check(t, c.Flush())
	defer func() { c.DelTable(table); check(t, c.Flush()) }()
	p := newPool(t, Config{Node: "a", DNS: []netip.Addr{netip.MustParseAddr(service), netip.MustParseAddr(lanDNS)}})
	s := acquire(t, p, "sb-1", Policy{Mode: Open})
	canReach(t, s, "tcp", "45.33.32.201:80")
	cantReach(t, s, "tcp", "45.33.32.200:80")
	canReach(t, s, "udp", service+":53")
	canReach(t, s, "tcp", service+":53")
	cantReach(t, s, "tcp", service+":80")
	blocked := acquire(t, p, "sb-2", Policy{Mode: Blocked})
	cantReach(t, blocked, "udp", service+":53")
}

// flows counts the machine's tracked connections that a slot opened.
func flows(t *testing.T, s *Slot) int {
	t.Helper()
	list, err := hostHandle(t).ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	check(t, err)
	n := 0
	for _, f := range list {
		if f.Forward.SrcIP.Equal(s.Address.AsSlice()) {
			n++
		}
	}
	return n
}

// flood sends one datagram from each of n ports.
func flood(t *testing.T, s *Slot, n int) {
	t.Helper()
	check(t, within(s.NetNS, func() error {
		for i := range n {
			d := net.Dialer{LocalAddr: &net.UDPAddr{Port: 10000 + i}}
			c, err := d.Dial("udp", site+":9999")
			if err != nil {
				return err
			}
			_, _ = c.Write([]byte("x"))
			_ = c.Close()
		}
		return nil
	}))
}

func TestFloodIsLimited(t *testing.T) {
	newWorld(t)
	for name, c := range map[string]Config{
		"by rate":   {Node: "rate", NewPerSecond: 4},
		"by number": {Node: "number", MaxFlows: 20},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, c)
			s, calm := acquire(t, p, "sb-1", Policy{Mode: Open}), acquire(t, p, "sb-2", Policy{Mode: Open})
			flood(t, s, 500)
			if n := flows(t, s); n < 10 || n > 40 {
				t.Errorf("%d connections are tracked, want about 20", n)
			}
			canReach(t, calm, "tcp", site+":80")
			// What is denied is not tracked at all.
			denied := acquire(t, p, "sb-3", Policy{Mode: Blocked})
			flood(t, denied, 100)
			if n := flows(t, denied); n > 0 {
				t.Errorf("%d denied connections are tracked", n)
			}
		})
	}
}

// TestNewHolderIsClean: whoever gets an address again meets nothing of the one
// before, neither connections nor a used-up limit.
func TestNewHolderIsClean(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a", CIDR: netip.MustParsePrefix("100.64.0.0/30"), MaxFlows: 20})
	first := acquire(t, p, "sb-0", Policy{Mode: Open})
	flood(t, first, 100)
	for i := range 3 { // there are two addresses
		check(t, p.Release(t.Context(), fmt.Sprintf("sb-%d", i)))
		s := acquire(t, p, fmt.Sprintf("sb-%d", i+1), Policy{Mode: Open})
		if n := flows(t, s); n > 0 {
			t.Fatalf("slot %s starts with %d connections", s.Interface, n)
		}
		canReach(t, s, "tcp", site+":80")
	}
}
