package network

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestMain puts the whole test process into a network and a mount namespace of
// its own, which then plays the host: no packet leaves the machine, and nothing
// stays behind whatever happens.
func TestMain(m *testing.M) {
	const marker = "SIROCCO_NETWORK_TEST"
	if os.Getenv(marker) == "" && os.Geteuid() == 0 {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
			fmt.Fprintln(os.Stderr, "these tests need to make namespaces:", err)
			os.Exit(1)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "these tests need to mount:", err)
			os.Exit(1)
		}
		err := unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), marker+"=1"))
		fmt.Fprintln(os.Stderr, "exec:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// The addresses of the world around the host.
const (
	hostWAN   = "8.0.0.2"       // the host on the Internet
	router    = "8.0.0.1"       // its router
	site      = "93.184.216.34" // a site out there
	otherSite = "45.33.32.156"
	azure     = "168.63.129.16"
	metadata  = "169.254.169.254"
	hostLAN   = "192.168.7.1"
	lanPeer   = "192.168.7.2"
	lanDNS    = "192.168.7.53"
	docNet    = "203.0.113.9"
	cgnat     = "100.127.255.9"
)

// world is what surrounds the pool in a test.
type world struct {
	internet, lan string // paths of namespaces
}

// needRoot fails a test that the kernel wouldn't let do anything.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
}

// newWorld wires the test's host to an Internet, which has every odd address
// there is, and to a LAN. TCP servers answer on ports 53 and 80 everywhere, UDP
// ones on some addresses.
func newWorld(t testing.TB) *world {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	w := &world{internet: filepath.Join(dir, "internet"), lan: filepath.Join(dir, "lan")}
	h := hostHandle(t)
	lo := must(h.LinkByName("lo"))
	check(t, h.LinkSetUp(lo))
	join := func(path, hostName, hostAddr string, inner []string) {
		check(t, makeNetNS(path, func(home int) error {
			in, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer in.Close()
			check(t, in.LinkSetUp(must(in.LinkByName("lo"))))
			v := netlink.NewVeth(netlink.NewLinkAttrs())
			v.Name, v.PeerName, v.PeerNamespace = "wan", hostName, netlink.NsFd(home)
			check(t, in.LinkAdd(v))
			link := must(in.LinkByName("wan"))
			for _, a := range inner {
				check(t, in.AddrAdd(link, must(netlink.ParseAddr(a))))
			}
			check(t, in.LinkSetUp(link))
			_, all6, _ := net.ParseCIDR("2001:db8::/64")
			return in.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: all6})
		}))
		t.Cleanup(func() { check(t, removeNetNS(path)) })
		link := must(h.LinkByName(hostName))
		t.Cleanup(func() { check(t, deleteLink(hostName)) })
		check(t, h.AddrAdd(link, must(netlink.ParseAddr(hostAddr))))
		check(t, h.LinkSetUp(link))
		// See carrier: the other end went up first.
		eventually(t, "a carrier inside", func() (up bool) {
			check(t, within(path, func() error {
				up = must(netlink.LinkByName("wan")).Attrs().OperState == netlink.OperUp
				return nil
			}))
			return up
		})
	}
	join(w.internet, "up0", hostWAN+"/24", []string{
		router + "/24", site + "/32", otherSite + "/32", azure + "/32", metadata + "/32", docNet + "/32", cgnat + "/32",
		"10.99.0.9/32", "172.20.0.9/32", "1.1.1.1/32", "2001:db8::1/64",
	})
	join(w.lan, "lan0", hostLAN+"/24", []string{lanPeer + "/24", lanDNS + "/24"})
	up := must(h.LinkByName("up0"))
	check(t, h.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: net.ParseIP(router)}))
	for _, ns := range []string{w.internet, w.lan} {
		for _, port := range []int{53, 80} {
			serve(t, ns, port)
		}
	}
	for _, a := range []string{site + ":80", site + ":53"} {
		serveUDP(t, w.internet, a)
	}
	for _, a := range []string{lanDNS + ":53", lanPeer + ":53"} {
		serveUDP(t, w.lan, a)
	}
	serve(t, "", 80)
	return w
}

func hostHandle(t testing.TB) *netlink.Handle {
	t.Helper()
	h := must(netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER))
	t.Cleanup(h.Close)
	return h
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// within runs f on a thread inside the namespace at path; "" is the host. The
// thread ends afterwards.
func within(path string, f func() error) error {
	if path == "" {
		return f()
	}
	return inNetNS(path, f)
}

// serve answers on TCP and UDP with the address of whoever asks.
func serve(t testing.TB, ns string, port int) {
	t.Helper()
	check(t, within(ns, func() error {
		addr := fmt.Sprintf("0.0.0.0:%d", port)
		if ns != "" {
			addr = fmt.Sprintf("[::]:%d", port)
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, c.RemoteAddr().String())
				_ = c.Close()
			}
		}()
		return nil
	}))
}

// serveUDP answers datagrams at one address, so that answers come from it.
func serveUDP(t testing.TB, ns, addr string) {
	t.Helper()
	check(t, within(ns, func() error {
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = c.Close() })
		go func() {
			buf := make([]byte, 512)
			for {
				_, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteTo([]byte(from.String()), from)
			}
		}()
		return nil
	}))
}

// patience bounds how long a packet that must not arrive is waited for; inside
// one kernel an answer takes well under a millisecond.
const patience = 250 * time.Millisecond

// reach connects from a namespace and returns what the server saw as the client.
func reach(ns, network, target string) (seen string, err error) {
	err = within(ns, func() error {
		d := net.Dialer{Timeout: patience}
		c, err := d.Dial(network, target)
		if err != nil {
			return err
		}
		defer c.Close()
		check := time.Now().Add(patience)
		if err := c.SetDeadline(check); err != nil {
			return err
		}
		if strings.HasPrefix(network, "udp") {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		buf := make([]byte, 64)
		n, err := c.Read(buf)
		seen = string(buf[:n])
		return err
	})
	return seen, err
}

func canReach(t *testing.T, s *Slot, network, target string) {
	t.Helper()
	if _, err := reach(s.NetNS, network, target); err != nil {
		t.Errorf("%s under %s can't reach %s %s: %v", s.ID, s.Policy.Mode, network, target, err)
	}
}

func cantReach(t *testing.T, s *Slot, network, target string) {
	t.Helper()
	if seen, err := reach(s.NetNS, network, target); err == nil {
		t.Errorf("%s under %s reaches %s %s (as %s)", s.ID, s.Policy.Mode, network, target, seen)
	}
}

// newPool makes a pool that is closed, emptied, at the end.
func newPool(t testing.TB, cfg Config) *Pool {
	t.Helper()
	if cfg.StateDir == "" {
		cfg.StateDir = t.TempDir()
	}
	if len(cfg.DNS) == 0 {
		cfg.DNS = []netip.Addr{netip.MustParseAddr(lanDNS)}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p, err := New(cfg)
	check(t, err)
	t.Cleanup(func() {
		if _, err := p.Sweep(context.Background(), nil); err != nil && err != ErrClosed {
			t.Error(err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func acquire(t testing.TB, p *Pool, id string, policy Policy) *Slot {
	t.Helper()
	s, err := p.Acquire(context.Background(), id, policy)
	check(t, err)
	return s
}

// eventually waits for a condition; it fails the test after ten seconds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in ten seconds: %s", what)
		}
		runtime.Gosched()
	}
}

// running runs the pool until the test or the returned function ends it.
func running(t testing.TB, p *Pool) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			check(t, <-done)
		}
	}
	t.Cleanup(stop)
	return stop
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}
