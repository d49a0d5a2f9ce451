package network

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Level says how bad a finding is.
type Level string

// The levels there are.
const (
	OK      Level = "ok"
	Warning Level = "warning" // sandboxes run, something about their network won't
	Failure Level = "failure" // no sandbox gets a network
)

// Finding is one thing that Check looked at.
type Finding struct {
	// Name of what was looked at, in a word or three.
	Name  string
	Level Level
	// Detail says what was found; Remedy what to do, unless Level is OK.
	Detail, Remedy string
}

// Check looks at what a pool with this configuration would need. It changes
// nothing on the machine: interfaces and rules are tried in a namespace that is
// thrown away.
func Check(cfg Config) []Finding {
	cfg, err := cfg.complete()
	if err != nil {
		return []Finding{{"network configuration", Failure, err.Error(), "correct it"}}
	}
	if os.Geteuid() != 0 {
		return []Finding{{"network privileges", Failure, "not root", "start as root"}}
	}
	out := []Finding{checkSlot(cfg)}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return append(out, Finding{"netlink", Failure, err.Error(), "run on Linux with CAP_NET_ADMIN"})
	}
	defer h.Close()
	own, taken, err := survey(h)
	if err != nil {
		return append(out, Finding{"routes", Failure, err.Error(), "run with CAP_NET_ADMIN"})
	}
	out = append(out, checkRange(cfg, taken), checkUplink(h, cfg), checkDNS(cfg, own))
	out = append(out, foreignDrops(cfg)...)
	return append(out, legacyDrop())
}

// checkSlot makes what a slot is made of, and a table, inside a namespace.
func checkSlot(cfg Config) Finding {
	f := Finding{"network slots", Failure, "",
		"run as root with CAP_NET_ADMIN and CAP_SYS_ADMIN on Linux 5.13 or later with veth, nf_tables, nft_ct, nft_fib_inet, nft_masq, nft_limit, nft_connlimit and nft_reject_inet"}
	dir, err := os.MkdirTemp("", "sirocco-check-")
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "make the folder for temporary files writable"
		return f
	}
	defer func() { _ = os.RemoveAll(dir) }()
	outer := filepath.Join(dir, "outer")
	if err := makeNetNS(outer, func(int) error { return nil }); err != nil {
		f.Detail = err.Error()
		return f
	}
	defer func() { _ = removeNetNS(outer) }()
	err = inNetNS(outer, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		cidr := netip.MustParsePrefix("100.64.0.0/30")
		w := wire{host: "check-0", gateway: cidr.Addr(), address: cidr.Addr().Next(), mtu: 1500, outer: h}
		if err := w.tryHere(); err != nil {
			return err
		}
		r := newRules(cfg, cfg.names(), cidr)
		s := &Slot{Interface: w.host, Address: w.address, Policy: Policy{Mode: Allowed, Allowed: special[:2]}}
		return errors.Join(r.install(nil, map[string]*Slot{"check": s}), r.close())
	})
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	return Finding{Name: f.Name, Level: OK, Detail: "namespace, interface pair and firewall table can be made"}
}

// tryHere makes the pair with both ends in the calling thread's namespace.
func (w wire) tryHere() error {
	veth := netlink.NewVeth(netlink.NewLinkAttrs())
	veth.Name, veth.PeerName = guestLink, w.host
	if err := w.outer.LinkAdd(veth); err != nil {
		return fmt.Errorf("make interface pair: %w", err)
	}
	return w.connect()
}

// inNetNS runs f on a thread inside the namespace at path and throws the thread
// away afterwards.
func inNetNS(path string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			result <- err
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

func checkRange(cfg Config, taken []netip.Prefix) Finding {
	if kept, ok := cfg.names().readRange(); ok && (!cfg.CIDR.IsValid() || cfg.CIDR == kept) {
		return Finding{Name: "network range", Level: OK, Detail: kept.String() + ", in use by this node"}
	}
	wanted := candidates(cfg.Node)
	if cfg.CIDR.IsValid() {
		wanted = []netip.Prefix{cfg.CIDR}
	}
	if got := free(wanted, taken); len(got) > 0 {
		return Finding{Name: "network range", Level: OK, Detail: got[0].String() + " is free"}
	}
	return Finding{"network range", Failure, "every range tried overlaps a route or an address of this machine", "configure one that is free"}
}

func checkUplink(h *netlink.Handle, cfg Config) Finding {
	found, err := uplinks(h, cfg.Uplink)
	if err != nil {
		return Finding{"uplink", Failure, err.Error(), "name an interface that exists, or none"}
	}
	if len(found) == 0 {
		return Finding{"uplink", Warning, "this machine has no default route: sandboxes will have no way out", "add a default route"}
	}
	var all []string
	for _, l := range found {
		all = append(all, fmt.Sprintf("%s (MTU %d)", l.Attrs().Name, l.Attrs().MTU))
	}
	return Finding{Name: "uplink", Level: OK, Detail: strings.Join(all, ", ") + "; forwarding is switched on there"}
}

func checkDNS(cfg Config, own []netip.Addr) Finding {
	if len(cfg.DNS) > 0 {
		return Finding{Name: "resolvers", Level: OK, Detail: fmt.Sprint(cfg.DNS, " as configured")}
	}
	got := resolvers(readResolvConfs(), own)
	if len(got) == len(fallbackDNS) && got[0] == fallbackDNS[0] && got[1] == fallbackDNS[1] {
		return Finding{"resolvers", Warning, fmt.Sprint("this machine names none that a sandbox can use; sandboxes get ", got),
			"configure resolvers if those can't be reached from here"}
	}
	return Finding{Name: "resolvers", Level: OK, Detail: fmt.Sprint(got)}
}

// foreignDrops finds chains of others that drop forwarded packets by default: an
// accept in our table does not overrule them.
func foreignDrops(cfg Config) []Finding {
	c, err := nftables.New()
	if err != nil {
		return []Finding{{"foreign firewall rules", Warning, err.Error(), "run with CAP_NET_ADMIN"}}
	}
	chains, err := c.ListChains()
	if err != nil {
		return []Finding{{"foreign firewall rules", Warning, err.Error(), "run with CAP_NET_ADMIN"}}
	}
	var out []Finding
	for _, ch := range chains {
		family := ch.Table.Family
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop ||
			(family != nftables.TableFamilyINet && family != nftables.TableFamilyIPv4) {
			continue
		}
		out = append(out, Finding{"foreign firewall rules", Warning,
			fmt.Sprintf("chain %s of table %s drops forwarded packets by default (Docker and firewalld do that): sandboxes may have no way out", ch.Name, ch.Table.Name),
			acceptRemedy(cfg)})
	}
	if len(out) == 0 {
		out = append(out, Finding{Name: "foreign firewall rules", Level: OK, Detail: "no nftables chain drops forwarded packets by default"})
	}
	return out
}

func acceptRemedy(cfg Config) string {
	prefix := cfg.names().prefix
	return fmt.Sprintf("let packets pass there: iptables -I FORWARD -i %s+ -j ACCEPT; iptables -I FORWARD -o %s+ -j ACCEPT (with Docker: DOCKER-USER instead of FORWARD)", prefix, prefix)
}

// legacyDrop says whether the older iptables, which nftables does not show, has
// a filter table.
func legacyDrop() Finding {
	name := "old iptables"
	tables, err := os.ReadFile("/proc/net/ip_tables_names")
	if err != nil || !bytes.Contains(tables, []byte("filter")) {
		return Finding{Name: name, Level: OK, Detail: "not in use"}
	}
	return Finding{name, Warning, "iptables-legacy has a filter table, whose FORWARD policy can't be seen here",
		"if sandboxes have no way out, run iptables-legacy -S FORWARD"}
}
