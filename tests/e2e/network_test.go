package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// openDoor listens on all addresses of this machine, as a careless service does.
func openDoor(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

// forbidden are all addresses that no sandbox may reach, whatever its policy.
func forbidden(t *testing.T, gateway string, neighbour *sirocco.Sandbox) []string {
	t.Helper()
	door := fmt.Sprint(openDoor(t))
	list := []string{
		"169.254.169.254:80", "169.254.170.2:80", "169.254.1.1:" + door, "100.100.100.200:80", "192.168.0.1:80", "10.0.0.1:80", "172.17.0.1:2375",
		net.JoinHostPort(neighbour.Record.GetObserved().GetAddress(), "8000"), "[fd00:ec2::254]:80",
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	hosts := []string{gateway}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			hosts = append(hosts, p.Addr().String())
		}
	}
	ports := []string{door, "22"}
	for _, address := range []string{up.API, up.Bus, strings.Replace(up.Tunnels, "*", "x", 1)} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, u.Port())
	}
	for _, host := range hosts {
		for _, port := range ports {
			list = append(list, net.JoinHostPort(host, port))
		}
	}
	return list
}

// Seen from inside, under every policy.
func TestWhatASandboxCannotReach(t *testing.T) {
	t.Parallel()
	neighbour, _ := web(t)
	for name, policy := range map[string]*siroccov1.NetworkPolicy{
		"default": nil,
		"open":    {Mode: siroccov1.NetworkMode_NETWORK_MODE_OPEN},
		"blocked": {Mode: siroccov1.NetworkMode_NETWORK_MODE_BLOCKED},
		"allowed, everything": {Mode: siroccov1.NetworkMode_NETWORK_MODE_ALLOWED, AllowedCidrs: []string{
			"0.0.0.0/0", "10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "100.64.0.0/10",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := client(t).Create(t.Context(), &siroccov1.CreateSandboxRequest{Image: visitorImage, Network: policy})
			if sirocco.CodeOf(err) == sirocco.InvalidArgument && policy.GetMode() == siroccov1.NetworkMode_NETWORK_MODE_ALLOWED {
				t.Fatalf("the policy was refused: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { up.CLI(context.Background(), nil, "rm", s.ID) })
			gateway := sh(t, s, "visitor route")
			if _, err := netip.ParseAddr(gateway); err != nil {
				t.Fatalf("the sandbox has no default route: %q", gateway)
			}
			list := forbidden(t, gateway, neighbour)
			if got := run(t, s, append([]string{"visitor", "dial"}, list...)...); got.out != "" || got.GetExitCode() != 0 {
				t.Errorf("%s%s", got.out, got.err)
			}
			// Its own loopback is its own.
			if got := sh(t, s, "visitor tcp 7000 & sleep 0.3; visitor dial 127.0.0.1:7000"); got != "reached 127.0.0.1:7000" {
				t.Errorf("loopback: %q", got)
			}
			resolv := sh(t, s, "cat /etc/resolv.conf 2>/dev/null || true")
			if blocked := policy.GetMode() == siroccov1.NetworkMode_NETWORK_MODE_BLOCKED; strings.Contains(resolv, "nameserver") == blocked {
				t.Errorf("resolv.conf: %q", resolv)
			}
		})
	}
	if got := sh(t, neighbour, "echo unharmed"); got != "unharmed" {
		t.Error(got)
	}
}

// A sandbox whose network is blocked still serves its tunnels and execs.
func TestBlockedSandboxServesTunnels(t *testing.T) {
	t.Parallel()
	s := create(t, &siroccov1.CreateSandboxRequest{
		Image: visitorImage, Command: []string{"visitor", "http", "8000"}, Ports: []*siroccov1.Port{{Port: 8000}}, Readiness: &siroccov1.Probe{TcpPort: 8000},
		Network: &siroccov1.NetworkPolicy{Mode: siroccov1.NetworkMode_NETWORK_MODE_BLOCKED},
	})
	if status, body := get(t, httpClient(t), s.Record.GetTunnels()[0].GetUrl()+"hello"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
}
