package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// crash lets go of a pool the way the kernel does when its process dies.
func crash(t testing.TB, p *Pool) {
	t.Helper()
	p.host.Close()
	check(t, p.rules.close())
	check(t, p.lock.Close())
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
}

// inventory is everything on the machine that a pool could leave behind.
type inventory struct {
	Links, Mounts, Routes, Elements, Neighbours, Files int
	Tables                                             []string
}

func takeInventory(t testing.TB, p *Pool) inventory {
	t.Helper()
	h := hostHandle(t)
	var inv inventory
	inv.Links = len(must(h.LinkList()))
	inv.Routes = len(must(h.RouteListFiltered(unix.AF_INET, &netlink.Route{}, netlink.RT_FILTER_TABLE)))
	inv.Neighbours = len(must(h.NeighList(0, unix.AF_INET)))
	inv.Mounts = strings.Count(string(must(os.ReadFile("/proc/self/mountinfo"))), "\n")
	check(t, filepath.WalkDir(p.cfg.StateDir, func(string, os.DirEntry, error) error { inv.Files++; return nil }))
	c := must(nftables.New())
	for _, table := range must(c.ListTables()) {
		inv.Tables = append(inv.Tables, table.Name)
		for _, set := range must(c.GetSets(table)) {
			set.Table = table
			inv.Elements += len(must(c.GetSetElements(set)))
		}
	}
	return inv
}

func openFiles(t testing.TB) int {
	t.Helper()
	return len(must(os.ReadDir("/proc/self/fd")))
}

func TestThousandCyclesLeaveNothing(t *testing.T) {
	newWorld(t)
	if _, err := reach("", "tcp", site+":80"); err != nil { // the host knows its router
		t.Fatal(err)
	}
	p := newPool(t, Config{Node: "a", PoolSize: 4})
	full := func() bool {
		st := p.Stats()
		return st.Ready == 4 && st.Held == 0 && st.Cleaning == 0
	}
	stop := running(t, p)
	eventually(t, "a full pool", full)
	stop()
	before := takeInventory(t, p)
	files, goroutines := openFiles(t), runtime.NumGoroutine()

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	for i := range 1000 {
		id := fmt.Sprintf("sb-%d", i)
		policy := Policy{Mode: Open}
		if i%3 == 0 {
			policy = Policy{Mode: Allowed, Allowed: prefixes(site+"/32", "20.0.0.0/8")}
		}
		s := acquire(t, p, id, policy)
		if i%50 == 0 {
			canReach(t, s, "tcp", site+":80")
		}
		check(t, p.Release(ctx, id))
	}
	eventually(t, "a full pool and no slot in removal", full)
	cancel()
	check(t, <-done)
	eventually(t, "the same number of goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
	eventually(t, "the same number of files", func() bool { return openFiles(t) <= files })
	if after := takeInventory(t, p); !reflect.DeepEqual(before, after) {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a", PoolSize: 3})
	before := takeInventory(t, p)
	stop := running(t, p)
	eventually(t, "a full pool", func() bool { return p.Stats().Ready == 3 })
	acquire(t, p, "sb-1", Policy{Mode: Open})
	check(t, p.Release(t.Context(), "sb-1"))
	stop()
	check(t, p.Close())
	check(t, p.Close())
	if after := takeInventory(t, p); !reflect.DeepEqual(before, after) {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
	if _, err := p.Acquire(t.Context(), "sb-2", Policy{Mode: Open}); !errors.Is(err, ErrClosed) {
		t.Errorf("acquire after close: %v", err)
	}
}

func TestAdoptAfterCrash(t *testing.T) {
	w := newWorld(t)
	state := t.TempDir()
	cfg := Config{Node: "a", PoolSize: 3, StateDir: state, Logger: slog.New(slog.DiscardHandler), DNS: []netip.Addr{netip.MustParseAddr(lanDNS)}}
	old := must(New(cfg))
	stop := running(t, old)
	open := acquire(t, old, "sb-open", Policy{Mode: Open})
	allowed := acquire(t, old, "sb-allowed", Policy{Mode: Allowed, Allowed: prefixes(site + "/32")})
	acquire(t, old, "sb-dead", Policy{Mode: Open})
	eventually(t, "a full pool", func() bool { return old.Stats().Ready == 3 })
	stop()

	// A connection that must outlive the agent.
	var conn, peer net.Conn
	var l net.Listener
	check(t, within(w.internet, func() (err error) { l, err = net.Listen("tcp", site+":8080"); return err }))
	defer l.Close()
	check(t, within(open.NetNS, func() (err error) { conn, err = net.Dial("tcp", site+":8080"); return err }))
	defer conn.Close()
	peer = must(l.Accept())
	defer peer.Close()
	crash(t, old)

	cfg.DNS = []netip.Addr{netip.MustParseAddr("1.1.1.1")} // the machine's resolver has changed
	p := newPool(t, cfg)
	got, err := p.Adopt(t.Context(), []string{"sb-open", "sb-allowed", "sb-unknown"})
	check(t, err)
	if want := map[string]*Slot{"sb-open": open, "sb-allowed": allowed}; !reflect.DeepEqual(got, want) {
		t.Errorf("adopted %+v, want %+v", got, want)
	}
	for _, way := range [][2]net.Conn{{conn, peer}, {peer, conn}} {
		check(t, way[1].SetReadDeadline(time.Now().Add(10*time.Second)))
		_, err := way[0].Write([]byte("still"))
		check(t, err)
		buf := make([]byte, 5)
		_, err = way[1].Read(buf)
		check(t, err)
	}
	canReach(t, open, "tcp", otherSite+":80")
	canReach(t, open, "udp", lanDNS+":53")
	canReach(t, allowed, "tcp", site+":80")
	cantReach(t, allowed, "tcp", otherSite+":80")
	if _, err := p.Acquire(t.Context(), "sb-open", Policy{Mode: Open}); !errors.Is(err, ErrExists) {
		t.Errorf("acquire of an adopted id: %v", err)
	}
	removed, err := p.Sweep(t.Context(), []string{"sb-open", "sb-allowed"})
	check(t, err)
	if len(removed) != 1 || !strings.Contains(removed[0], "sb-dead") {
		t.Errorf("swept %q, want the dead one's slot", removed)
	}
	fresh := acquire(t, p, "sb-new", Policy{Mode: Open})
	if fresh.Address == open.Address || fresh.Address == allowed.Address {
		t.Errorf("address %s is handed out twice", fresh.Address)
	}
	canReach(t, fresh, "tcp", site+":80")
	check(t, p.drain())
	if links := must(p.names.hostLinks(p.host)); len(links) != 3 {
		t.Errorf("%d interfaces for three slots", len(links))
	}
}

func TestCloseKeepsHeldSlots(t *testing.T) {
	newWorld(t)
	state := t.TempDir()
	first := newPool(t, Config{Node: "a", StateDir: state})
	s := acquire(t, first, "sb-1", Policy{Mode: Open})
	check(t, first.Close())
	canReach(t, s, "tcp", site+":80")
	cantReach(t, s, "tcp", lanPeer+":80")
	second := newPool(t, Config{Node: "a", StateDir: state})
	got := must(second.Adopt(t.Context(), []string{"sb-1"}))
	if !reflect.DeepEqual(got["sb-1"], s) {
		t.Errorf("adopted %+v, want %+v", got["sb-1"], s)
	}
}

func TestDamagedState(t *testing.T) {
	newWorld(t)
	state := t.TempDir()
	old := newPool(t, Config{Node: "a", StateDir: state})
	for i := range 4 {
		acquire(t, old, fmt.Sprintf("sb-%d", i), Policy{Mode: Open})
	}
	whole := old.Get("sb-0")
	check(t, os.WriteFile(old.names.id("sb-1"), []byte(`{"index":`), 0o600))
	check(t, deleteLink(old.Get("sb-2").Interface))
	check(t, removeNetNS(old.Get("sb-3").NetNS))
	check(t, os.WriteFile(old.names.id(".sb-9"), []byte("cut"), 0o600))
	crash(t, old)
	p := newPool(t, Config{Node: "a", StateDir: state})
	got := must(p.Adopt(t.Context(), []string{"sb-0", "sb-1", "sb-2", "sb-3"}))
	if len(got) != 1 || !reflect.DeepEqual(got["sb-0"], whole) {
		t.Errorf("adopted %v, want only the whole one", got)
	}
	check(t, p.drain())
	if files := must(os.ReadDir(p.names.idDir())); len(files) != 1 {
		t.Errorf("%d entries are left, want one", len(files))
	}
	if links := must(p.names.hostLinks(p.host)); len(links) != 1 {
		t.Errorf("%d interfaces are left, want one", len(links))
	}
}

func TestSweepFindsLeaks(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a"})
	s := acquire(t, p, "sb-1", Policy{Mode: Open})
	stray := p.slot(77)
	check(t, p.build(stray))
	beyond := p.slot(1 << 20)
	check(t, os.WriteFile(beyond.NetNS, nil, 0o600))
	removed := must(p.Sweep(t.Context(), []string{"sb-1"}))
	if len(removed) != 2 {
		t.Errorf("swept %q, want two leaked slots", removed)
	}
	check(t, p.drain())
	if there := must(linkExists(p.host, stray.Interface)); there {
		t.Error("the leaked interface is still there")
	}
	if more := must(p.Sweep(t.Context(), []string{"sb-1"})); len(more) != 0 {
		t.Errorf("the second sweep finds %q", more)
	}
	canReach(t, s, "tcp", site+":80")
}

// TestSlotGoesWithProcessInside: a namespace that something still uses loses its
// interface all the same.
func TestSlotGoesWithProcessInside(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a"})
	s := acquire(t, p, "sb-1", Policy{Mode: Open})
	fd := must(unix.Open(s.NetNS, unix.O_RDONLY|unix.O_CLOEXEC, 0))
	defer unix.Close(fd)
	inside := fmt.Sprintf("/proc/self/fd/%d", fd)
	check(t, p.Release(t.Context(), "sb-1"))
	if _, err := reach(inside, "tcp", site+":80"); err == nil {
		t.Error("a released slot still reaches the Internet")
	}
	check(t, p.drain())
	if must(linkExists(p.host, s.Interface)) {
		t.Error("the interface is still there")
	}
}

func TestFlushedTableComesBack(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a"})
	running(t, p)
	s := acquire(t, p, "sb-1", Policy{Mode: Open})
	c := must(nftables.New())
	c.DelTable(p.rules.table)
	check(t, c.Flush())
	eventually(t, "the table is back", func() bool {
		_, err := c.ListTableOfFamily(p.rules.table.Name, nftables.TableFamilyINet)
		return err == nil
	})
	canReach(t, s, "tcp", site+":80")
	cantReach(t, s, "tcp", lanPeer+":80")
	check(t, p.Release(t.Context(), "sb-1"))
}

func TestConcurrentUse(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a", PoolSize: 4})
	stop := running(t, p)
	var wg sync.WaitGroup
	var taken sync.Map
	for g := range 8 {
		wg.Go(func() {
			for i := range 25 {
				id := fmt.Sprintf("sb-%d-%d", g, i)
				s, err := p.Acquire(t.Context(), id, Policy{Mode: Open})
				if err != nil {
					t.Error(err)
					return
				}
				if other, twice := taken.LoadOrStore(s.Address, id); twice {
					t.Errorf("%s and %s share %s", id, other, s.Address)
				}
				if i%10 == 0 {
					if _, err := p.Sweep(t.Context(), living(p)); err != nil {
						t.Error(err)
					}
				}
				taken.Delete(s.Address)
				if err := p.Release(t.Context(), id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "all released", func() bool { st := p.Stats(); return st.Held == 0 && st.Cleaning == 0 && st.Ready == 4 })
	stop()
}

func living(p *Pool) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for id := range p.held {
		out = append(out, id)
	}
	for id := range p.busy {
		out = append(out, id)
	}
	return out
}

func TestRefusals(t *testing.T) {
	newWorld(t)
	state := t.TempDir()
	p := newPool(t, Config{Node: "a", StateDir: state, CIDR: netip.MustParsePrefix("10.50.0.0/30")})
	ctx := t.Context()
	acquire(t, p, "sb-1", Policy{Mode: Open})
	if _, err := p.Acquire(ctx, "sb-1", Policy{Mode: Open}); !errors.Is(err, ErrExists) {
		t.Errorf("same id twice: %v", err)
	}
	for _, bad := range []Policy{{}, {Mode: "most"}, {Mode: Open, Allowed: prefixes("1.0.0.0/8")},
		{Mode: Allowed, Allowed: prefixes("2001:db8::/32")}, {Mode: Allowed, Allowed: make([]netip.Prefix, 1)}} {
		if _, err := p.Acquire(ctx, "sb-x", bad); !errors.Is(err, ErrPolicy) {
			t.Errorf("policy %+v: %v", bad, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "a/b", ".hidden", strings.Repeat("a", 200), "a\x00b"} {
		if _, err := p.Acquire(ctx, bad, Policy{Mode: Open}); !errors.Is(err, ErrConfig) {
			t.Errorf("id %q: %v", bad, err)
		}
	}
	acquire(t, p, "sb-2", Policy{Mode: Open})
	if _, err := p.Acquire(ctx, "sb-3", Policy{Mode: Open}); !errors.Is(err, ErrExhausted) {
		t.Errorf("third slot of two: %v", err)
	}
	check(t, p.Release(ctx, "sb-3"))
	check(t, p.Release(ctx, "sb-2"))
	check(t, p.Release(ctx, "sb-2"))
	acquire(t, p, "sb-3", Policy{Mode: Open})

	var setup *SetupError
	if _, err := must(New(Config{Node: "a", StateDir: state})).Adopt(ctx, nil); !errors.As(err, &setup) {
		t.Errorf("second agent of the same name: %v", err)
	}
	for name, c := range map[string]Config{
		"range of the machine": {Node: "b", CIDR: netip.MustParsePrefix("192.168.0.0/16")},
		"range of a node":      {Node: "b", CIDR: netip.MustParsePrefix("10.50.0.0/24")},
		"no such uplink":       {Node: "b", Uplink: "nowhere0"},
	} {
		c.StateDir = t.TempDir()
		if _, err := must(New(c)).Adopt(ctx, nil); !errors.As(err, &setup) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]Config{
		"no name": {}, "path": {Node: "a/b"}, "public": {Node: "b", CIDR: netip.MustParsePrefix("8.0.0.0/16")},
		"wide": {Node: "b", CIDR: netip.MustParsePrefix("10.0.0.0/8")}, "loopback resolver": {Node: "b", DNS: []netip.Addr{netip.MustParseAddr("127.0.0.53")}},
		"metadata resolver": {Node: "b", DNS: []netip.Addr{netip.MustParseAddr(metadata)}}, "relative": {Node: "b", StateDir: "x"},
		"host bits": {Node: "b", CIDR: netip.MustParsePrefix("10.0.0.1/24")},
	} {
		if _, err := New(c); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSlotIsComplete: what gVisor copies is all there when Acquire returns.
func TestSlotIsComplete(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a"})
	s := acquire(t, p, "sb-1", Policy{Mode: Open})
	check(t, within(s.NetNS, func() error {
		if lo := must(netlink.LinkByName("lo")).Attrs(); lo.Flags&net.FlagUp == 0 {
			t.Error("loopback is down")
		}
		link := must(netlink.LinkByName(guestLink))
		attrs := link.Attrs()
		if attrs.OperState != netlink.OperUp || attrs.HardwareAddr.String() != s.MAC.String() || attrs.MTU != s.MTU {
			t.Errorf("interface %+v", attrs)
		}
		addrs := must(netlink.AddrList(link, netlink.FAMILY_ALL))
		if len(addrs) != 1 || addrs[0].IP.String() != s.Address.String() {
			t.Errorf("addresses %v", addrs)
		}
		var gateways []string
		for _, r := range must(netlink.RouteList(link, unix.AF_INET)) {
			if r.Gw != nil {
				gateways = append(gateways, r.Gw.String())
			}
		}
		if len(gateways) != 1 || gateways[0] != s.Gateway.String() {
			t.Errorf("gateways %v", gateways)
		}
		return nil
	}))
}

func TestCheck(t *testing.T) {
	newWorld(t)
	levels := func(list []Finding) string {
		var out []string
		for _, f := range list {
			if f.Level != OK {
				if f.Detail == "" || f.Remedy == "" {
					t.Errorf("finding %+v doesn't explain itself", f)
				}
				out = append(out, fmt.Sprintf("%s: %s", f.Name, f.Level))
			}
		}
		return strings.Join(out, ", ")
	}
	cfg := Config{Node: "a", StateDir: t.TempDir(), DNS: []netip.Addr{netip.MustParseAddr(lanDNS)}}
	probe := must(New(cfg))
	before := takeInventory(t, probe)
	if got := levels(Check(cfg)); got != "" {
		t.Errorf("on a machine that has everything: %s", got)
	}
	if after := takeInventory(t, probe); !reflect.DeepEqual(before, after) {
		t.Errorf("the check changed the machine: before %+v, after %+v", before, after)
	}
	c := must(nftables.New())
	drop := nftables.ChainPolicyDrop
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
	c.AddChain(&nftables.Chain{Table: table, Name: "FORWARD", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &drop})
	check(t, c.Flush())
	defer func() { c.DelTable(table); check(t, c.Flush()) }()
	if got := levels(Check(cfg)); got != "foreign firewall rules: warning" {
		t.Errorf("with Docker's policy: %s", got)
	}
	cfg.CIDR = netip.MustParsePrefix("192.168.0.0/16")
	cfg.Uplink, cfg.DNS = "nowhere0", []netip.Addr{netip.MustParseAddr("1.1.1.1")}
	if got := levels(Check(cfg)); got != "network range: failure, uplink: failure, foreign firewall rules: warning" {
		t.Errorf("with a bad configuration: %s", got)
	}
}
