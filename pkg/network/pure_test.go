package network

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"pgregory.net/rapid"
)

func drawPrefix(t *rapid.T) netip.Prefix {
	b := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")
	return netip.PrefixFrom(netip.AddrFrom4([4]byte(b)), rapid.IntRange(0, 32).Draw(t, "bits"))
}

func TestAddressesProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(26, 30).Draw(t, "bits")
		a := newAddresses(netip.PrefixFrom(netip.MustParseAddr("100.64.128.0"), bits))
		held := map[int]bool{}
		seen := map[netip.Addr]int{}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				i, ok := a.take()
				if ok != (len(held) < a.size()) {
					t.Fatalf("take says %v with %d of %d held", ok, len(held), a.size())
				}
				if !ok {
					return
				}
				if held[i] || i < 0 || i >= a.size() {
					t.Fatalf("index %d", i)
				}
				held[i] = true
				gateway, address := a.pair(i)
				if !a.cidr.Contains(gateway) || !a.cidr.Contains(address) || gateway == address {
					t.Fatalf("pair %s %s", gateway, address)
				}
				for _, x := range []netip.Addr{gateway, address} {
					if other, ok := seen[x]; ok && other != i {
						t.Fatalf("%s belongs to %d and %d", x, i, other)
					}
					seen[x] = i
				}
			},
			"give": func(t *rapid.T) {
				i := rapid.IntRange(-1, a.size()).Draw(t, "index")
				a.give(i)
				delete(held, i)
			},
			"reserve": func(t *rapid.T) {
				i := rapid.IntRange(-1, a.size()).Draw(t, "index")
				want := i >= 0 && i < a.size() && !held[i]
				if a.reserve(i) != want {
					t.Fatalf("reserve %d: want %v", i, want)
				}
				if want {
					held[i] = true
				}
			},
		})
	})
}

func TestAddressIsReusedLate(t *testing.T) {
	a := newAddresses(netip.MustParsePrefix("10.0.0.0/28"))
	first, _ := a.take()
	a.give(first)
	for range a.size() - 1 {
		if i, ok := a.take(); !ok || i == first {
			t.Fatalf("take gives %d %v before all others were used", i, ok)
		}
	}
	if i, ok := a.take(); !ok || i != first {
		t.Errorf("take gives %d %v in the end", i, ok)
	}
}

func TestOutermostProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.SliceOfN(rapid.Custom(drawPrefix), 0, 20).Draw(t, "ranges")
		out := outermost(in)
		for i, p := range out {
			for _, q := range out[i+1:] {
				if p.Overlaps(q) {
					t.Fatalf("%s and %s overlap", p, q)
				}
			}
		}
		probe := drawPrefix(t).Addr()
		if contains(in, probe) != contains(out, probe) {
			t.Fatalf("%s: %v in %v, %v in %v", probe, contains(in, probe), in, contains(out, probe), out)
		}
	})
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// inside says what the kernel makes of interval elements.
func inside(elements []nftables.SetElement, a netip.Addr) bool {
	in := false
	for _, e := range elements {
		if key, _ := netip.AddrFromSlice(e.Key); key.Compare(a) <= 0 {
			in = !e.IntervalEnd
		}
	}
	return in
}

func TestIntervalsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ranges := outermost(rapid.SliceOfN(rapid.Custom(drawPrefix), 1, 20).Draw(t, "ranges"))
		elements := intervals(ranges)
		probes := []netip.Addr{drawPrefix(t).Addr()}
		for _, p := range ranges {
			for _, a := range []netip.Addr{p.Addr(), p.Addr().Prev(), last(p), last(p).Next()} {
				if a.IsValid() {
					probes = append(probes, a)
				}
			}
		}
		for _, a := range probes {
			if inside(elements, a) != contains(ranges, a) {
				t.Fatalf("%s: elements say %v, ranges %v", a, inside(elements, a), ranges)
			}
		}
	})
}

func TestSpecialRangesAreDenied(t *testing.T) {
	elements := intervals(denied(nil))
	for _, a := range strings.Fields("0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 168.63.129.16 169.254.169.254 172.16.0.1 172.31.255.255 " +
		"192.0.0.8 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255") {
		if !inside(elements, netip.MustParseAddr(a)) {
			t.Errorf("%s is not denied", a)
		}
	}
	for _, a := range strings.Fields("1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 168.63.129.17 172.32.0.0 192.0.1.1 223.255.255.255") {
		if inside(elements, netip.MustParseAddr(a)) {
			t.Errorf("%s is denied", a)
		}
	}
}

func TestChoiceOfRange(t *testing.T) {
	all := candidates("a")
	for _, r := range all {
		if err := rangeUsable(r); err != nil {
			t.Fatal(err)
		}
	}
	if len(all) < 256 || len(outermost(all)) != len(all) {
		t.Fatalf("%d candidates, %d apart", len(all), len(outermost(all)))
	}
	if got := free(all, prefixes("100.64.0.0/10")); len(got) == 0 || !netip.MustParsePrefix("10.0.0.0/8").Overlaps(got[0]) {
		t.Errorf("with 100.64.0.0/10 taken: %v", got[:min(len(got), 1)])
	}
	if got := free(all, prefixes("100.64.0.0/10", "10.0.0.0/8")); len(got) != 0 {
		t.Errorf("with everything taken: %v", got)
	}
	if all[0] == candidates("b")[0] {
		t.Error("two nodes start with the same range")
	}
}

func TestResolvers(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("192.168.1.5")}
	for name, c := range map[string]struct{ first, second, want string }{
		"plain":         {"nameserver 10.1.1.1\n", "", "[10.1.1.1]"},
		"stub":          {"# x\nnameserver 127.0.0.53\noptions edns0\n", "nameserver 8.8.8.8\nnameserver 10.0.0.2", "[8.8.8.8 10.0.0.2]"},
		"the host":      {"nameserver 192.168.1.5\n", "", "[1.1.1.1 9.9.9.9]"},
		"metadata":      {"nameserver 169.254.169.254\n", "", "[1.1.1.1 9.9.9.9]"},
		"IPv6":          {"nameserver 2001:4860:4860::8888\nnameserver fe80::1%eth0\nnameserver ::ffff:10.2.2.2\n", "", "[10.2.2.2]"},
		"three at most": {"nameserver 10.0.0.1\nnameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n", "", "[10.0.0.1 10.0.0.2 10.0.0.3]"},
		"nothing":       {"", "", "[1.1.1.1 9.9.9.9]"},
	} {
		var got []string
		for _, a := range resolvers([][]byte{[]byte(c.first), []byte(c.second)}, own) {
			got = append(got, a.String())
		}
		if s := "[" + strings.Join(got, " ") + "]"; s != c.want {
			t.Errorf("%s: %s, want %s", name, s, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	long := Config{Node: strings.Repeat("n", 63), StateDir: "/run/x"}.names()
	if got := long.link(32767); len(got) > 15 {
		t.Errorf("interface name %q is too long", got)
	}
	a, b := Config{Node: "node-1"}.names(), Config{Node: "node-2"}.names()
	if a.prefix == b.prefix || a.table == b.table || a.dir == b.dir {
		t.Error("two nodes share names")
	}
	if i, ok := a.index(a.link(42)); !ok || i != 42 {
		t.Errorf("index of %s: %d %v", a.link(42), i, ok)
	}
	for _, bad := range []string{b.link(1), "eth0", a.prefix, a.prefix + "-1", a.prefix + "01", "lo"} {
		if _, ok := a.index(bad); ok {
			t.Errorf("%q is taken for a slot", bad)
		}
	}
}

func FuzzNameservers(f *testing.F) {
	f.Add([]byte("nameserver 1.1.1.1\nsearch x\n"))
	f.Add([]byte("nameserver\tfe80::1%eth0\nnameserver 999.1.1.1"))
	f.Fuzz(func(t *testing.T, conf []byte) {
		got := resolvers([][]byte{conf}, nil)
		if len(got) == 0 || len(got) > maxResolvers {
			t.Fatalf("%d resolvers", len(got))
		}
		for _, a := range got {
			if !resolverUsable(a) {
				t.Fatalf("resolver %s", a)
			}
		}
	})
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte(`{"index":3,"policy":{"mode":"allowed","allowed":["1.2.3.0/24"]},"dns":["10.0.0.1"],"mtu":1500}`))
	f.Add([]byte(`{"index":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEntry(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseEntry(again); err != nil {
			t.Fatalf("%s becomes %s: %v", b, again, err)
		}
	})
}
