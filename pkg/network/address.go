package network

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
)

// homes are where a node's range may lie, in the order they are tried: private
// networks that people use seldom contain 100.64.0.0/10.
var homes = []netip.Prefix{
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
}

// chosenBits is the length of a range that is chosen, not configured.
const chosenBits = 18

// candidates lists every range of length chosenBits in the first two homes. It
// starts at a place that depends on the node's name, so that agents starting
// together seldom want the same.
func candidates(node string) []netip.Prefix {
	h := fnv.New32a()
	_, _ = h.Write([]byte(node))
	var out []netip.Prefix
	for _, home := range homes[:2] {
		count := 1 << (chosenBits - home.Bits())
		for i := range count {
			at := (uint32(i) + h.Sum32()) % uint32(count)
			out = append(out, netip.PrefixFrom(offset(home.Addr(), at<<(32-chosenBits)), chosenBits))
		}
	}
	return out
}

// free returns those of the ranges that overlap none that are taken.
func free(ranges, taken []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
next:
	for _, r := range ranges {
		for _, t := range taken {
			if t.Overlaps(r) {
				continue next
			}
		}
		out = append(out, r)
	}
	return out
}

func offset(a netip.Addr, n uint32) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+n)
	return netip.AddrFrom4(b)
}

// addresses hands out the pairs of a range by index. A pair that comes back goes
// to the end of the queue: it is reused as late as possible, for those outside
// who still send packets to it. It is not safe for concurrent use.
type addresses struct {
	cidr  netip.Prefix
	next  int   // first index never handed out
	queue []int // given back, oldest first
	taken map[int]bool
}

func newAddresses(cidr netip.Prefix) *addresses {
	return &addresses{cidr: cidr, taken: map[int]bool{}}
}

func (a *addresses) size() int { return 1 << (31 - a.cidr.Bits()) }

// pair returns the gateway and the sandbox's address of an index.
func (a *addresses) pair(index int) (gateway, address netip.Addr) {
	g := offset(a.cidr.Addr(), uint32(index)*2)
	return g, g.Next()
}

// take returns a free index; false if there is none.
func (a *addresses) take() (int, bool) {
	for a.next < a.size() {
		i := a.next
		a.next++
		if !a.taken[i] {
			a.taken[i] = true
			return i, true
		}
	}
	for len(a.queue) > 0 {
		i := a.queue[0]
		a.queue = a.queue[1:]
		if !a.taken[i] {
			a.taken[i] = true
			return i, true
		}
	}
	return 0, false
}

// reserve takes a certain index; false if it is taken or outside.
func (a *addresses) reserve(index int) bool {
	if index < 0 || index >= a.size() || a.taken[index] {
		return false
	}
	a.taken[index] = true
	return true
}

// give returns an index. One that is not taken is ignored.
func (a *addresses) give(index int) {
	if a.taken[index] {
		delete(a.taken, index)
		if index < a.next {
			a.queue = append(a.queue, index)
		}
	}
}
