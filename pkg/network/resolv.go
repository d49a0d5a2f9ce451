package network

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"slices"
)

// fallbackDNS is used when the machine's own resolvers can't be used by anybody
// but the machine: public ones that promise not to keep who asked.
var fallbackDNS = []netip.Addr{netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("9.9.9.9")}

// resolvConfs are read in this order; the second holds the real upstreams where
// the first only names systemd's stub on loopback.
var resolvConfs = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// maxResolvers is what a libc looks at.
const maxResolvers = 3

// nameservers returns the addresses of the nameserver lines of a resolv.conf;
// what it doesn't understand it passes over, as a libc does.
func nameservers(conf []byte) []netip.Addr {
	var out []netip.Addr
	lines := bufio.NewScanner(bytes.NewReader(conf))
	for lines.Scan() {
		f := bytes.Fields(lines.Bytes())
		if len(f) < 2 || string(f[0]) != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(string(f[1])); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// resolverUsable reports whether a sandbox could use a resolver at all. Those on
// link-local addresses are metadata services (Google's is one and the same).
func resolverUsable(a netip.Addr) bool {
	return a.Is4() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// resolvers picks the resolvers of sandboxes from the machine's, or falls back.
// own are the machine's addresses: a resolver there is the host, which sandboxes
// can't reach.
func resolvers(confs [][]byte, own []netip.Addr) []netip.Addr {
	for _, conf := range confs {
		var out []netip.Addr
		for _, a := range nameservers(conf) {
			if resolverUsable(a) && !slices.Contains(own, a) && !slices.Contains(out, a) && len(out) < maxResolvers {
				out = append(out, a)
			}
		}
		if len(out) > 0 {
			return out
		}
	}
	return slices.Clone(fallbackDNS)
}

func readResolvConfs() [][]byte {
	var confs [][]byte
	for _, name := range resolvConfs {
		if b, err := os.ReadFile(name); err == nil {
			confs = append(confs, b)
		}
	}
	return confs
}
