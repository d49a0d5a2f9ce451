package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/gvisortest"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
)

// machines returns a runtime and the image of the test guest.
func machines(t *testing.T) (*gvisor.Runtime, string) {
	t.Helper()
	// A temporary folder of the test's own has too long a name for a socket.
	dir, err := os.MkdirTemp("", "sirocco-net-")
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	rt, err := gvisor.New(gvisor.Config{RunscPath: gvisortest.Runsc(t), StateDir: dir})
	check(t, err)
	t.Cleanup(func() { check(t, rt.Close()) })
	return rt, gvisortest.GuestImage(t)
}

// machine is the test guest in the slot's network.
func machine(image string, s *Slot) runtime.Spec {
	return runtime.Spec{
		ID: s.ID, Hostname: s.ID, NetNS: s.NetNS, Rootfs: runtime.Rootfs{EROFS: image},
		Args: []string{gvisortest.GuestPath, "serve"}, Resources: runtime.Resources{MemoryBytes: 128 << 20, Pids: 50},
	}
}

// boot runs the test guest in the slot's network.
func boot(t *testing.T, rt *gvisor.Runtime, image string, s *Slot) runtime.Sandbox {
	t.Helper()
	sb, err := rt.Create(t.Context(), machine(image, s))
	check(t, err)
	t.Cleanup(func() { check(t, sb.Destroy(context.Background())) })
	return sb
}

// ask sends a line to the test guest and returns its answer.
func ask(t *testing.T, sb runtime.Sandbox, line string) string {
	t.Helper()
	var answer []byte
	eventually(t, "the guest's server", func() bool {
		c, err := sb.Dial(t.Context(), 8000)
		if errors.Is(err, runtime.ErrRefused) {
			return false
		}
		check(t, err)
		defer func() { _ = c.Close() }()
		_, err = fmt.Fprintln(c, line)
		check(t, err)
		answer, err = io.ReadAll(c)
		check(t, err)
		return true
	})
	return strings.TrimSpace(string(answer))
}

// TestInsideASandbox: what the slot promises is what a process in gVisor sees, which
// has a network stack of its own and takes over addresses and routes when it starts.
func TestInsideASandbox(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a"})
	rt, image := machines(t)
	s := acquire(t, p, sandboxid.New(), Policy{Mode: Open})
	sb := boot(t, rt, image, s)
	if got := ask(t, sb, "env"); !strings.Contains(got, "host="+s.ID+" ") {
		t.Errorf("the guest says %s, want its id as the host name", got)
	}
	want := fmt.Sprintf("eth0 %s [%s/31", s.MAC, s.Address)
	if got := ask(t, sb, "addresses"); !strings.Contains(got, want) {
		t.Errorf("the guest's interfaces are\n%s\nwant %s", got, want)
	}
	g := s.Gateway.As4()
	route := fmt.Sprintf("eth0\t00000000\t%02X%02X%02X%02X\t", g[3], g[2], g[1], g[0])
	if got := ask(t, sb, "get /proc/net/route"); !strings.Contains(got, route) {
		t.Errorf("the guest's routes are\n%s\nwant a default one by %s", got, s.Gateway)
	}
	if got := ask(t, sb, "dial "+site+":80"); !strings.Contains(got, hostWAN+":") {
		t.Errorf("a connection to a site answers %q, want to be seen there as %s", got, hostWAN)
	}
	for name, target := range forbidden {
		if got := ask(t, sb, "dial "+target); !strings.HasPrefix(got, "error: ") {
			t.Errorf("%s (%s) answers %q", name, target, got)
		}
	}
	if got := ask(t, sb, "dial "+s.Gateway.String()+":80"); !strings.HasPrefix(got, "error: ") {
		t.Errorf("the gateway answers %q", got)
	}
}

// TestInsideABlockedSandbox: nothing answers, except the guest's own loopback.
func TestInsideABlockedSandbox(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "a"})
	rt, image := machines(t)
	s := acquire(t, p, sandboxid.New(), Policy{Mode: Blocked})
	other := acquire(t, p, sandboxid.New(), Policy{Mode: Open})
	sb := boot(t, rt, image, s)
	for _, target := range []string{site + ":80", lanDNS + ":53", s.Gateway.String() + ":80", other.Address.String() + ":8000"} {
		if got := ask(t, sb, "dial "+target); !strings.Contains(got, "refused") && !strings.HasPrefix(got, "error: ") {
			t.Errorf("%s answers %q", target, got)
		}
	}
}

// TestMovedSandbox: a sandbox that is restored in another slot has that slot's address
// and route. What listened still does, unless it was on the address that is gone;
// connections to the outside end at once, those of the loopback device live on.
func TestMovedSandbox(t *testing.T) {
	w := newWorld(t)
	p := newPool(t, Config{Node: "a"})
	rt, image := machines(t)
	from, to := acquire(t, p, sandboxid.New(), Policy{Mode: Open}), acquire(t, p, sandboxid.New(), Policy{Mode: Open})
	sb := boot(t, rt, image, from)
	old := fmt.Sprintf("%s:7002", from.Address)
	for _, line := range []string{"listen 0.0.0.0:7001", "listen " + old, "call " + stay(t, w, site+":7000")} {
		if got := ask(t, sb, line); got != "<nil>" {
			t.Fatalf("%s: %s", line, got)
		}
	}
	if got := ask(t, sb, "prepare"); got != "ok" {
		t.Fatal(got)
	}
	check(t, sb.Pause(t.Context()))
	dir := t.TempDir()
	check(t, sb.Checkpoint(t.Context(), dir))
	check(t, sb.Destroy(t.Context()))
	s := machine(image, to)
	s.Restore = func(context.Context) (string, error) { return dir, nil }
	moved, err := rt.Create(t.Context(), s)
	check(t, err)
	t.Cleanup(func() { check(t, moved.Destroy(context.Background())) })
	check(t, moved.Resume(t.Context()))
	want := fmt.Sprintf("eth0 %s [%s/31", to.MAC, to.Address)
	if got := ask(t, moved, "addresses"); !strings.Contains(got, want) || strings.Contains(got, from.Address.String()) {
		t.Errorf("the guest's interfaces are\n%s\nwant %s", got, want)
	}
	if got := ask(t, moved, "dial "+site+":80"); !strings.Contains(got, hostWAN+":") {
		t.Errorf("a connection to a site answers %q, want to be seen there as %s", got, hostWAN)
	}
	for _, address := range []string{"127.0.0.1:7001", to.Address.String() + ":7001"} {
		if got := ask(t, moved, "dial "+address); got != "here" {
			t.Errorf("%s answers %q", address, got)
		}
	}
	if got := ask(t, moved, "dial "+old); !strings.HasPrefix(got, "error: ") {
		t.Errorf("the old address answers %q", got)
	}
	if got := ask(t, moved, "listen "+to.Address.String()+":7003"); got != "<nil>" {
		t.Errorf("listen on the new address: %s", got)
	}
	eventually(t, "the end of a connection to the outside", func() bool { return ask(t, moved, "ends") != "" })
	if got := ask(t, moved, "ends"); !strings.Contains(got, "reset") {
		t.Errorf("it ended as if it were complete: %s", got)
	}
	if got := ask(t, moved, "verify"); got != "ok" {
		t.Error(got)
	}
}

// stay listens at an address of the internet and keeps connections open.
func stay(t *testing.T, w *world, address string) string {
	t.Helper()
	check(t, within(w.internet, func() error {
		l, err := net.Listen("tcp", address)
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
				t.Cleanup(func() { _ = c.Close() })
			}
		}()
		return nil
	}))
	return address
}
