package network

import (
	"fmt"
	"net/netip"
	"slices"
)

// Mode is the kind of a policy.
type Mode string

// The modes there are. The zero value is none of them and is refused.
const (
	// Open lets a sandbox reach every global IPv4 address, and the resolvers.
	Open Mode = "open"
	// Blocked lets it reach nothing, resolvers included.
	Blocked Mode = "blocked"
	// Allowed lets it reach Policy.Allowed, and the resolvers.
	Allowed Mode = "allowed"
)

// MaxAllowed is the number of ranges one policy may have.
const MaxAllowed = 64

// Policy says what a sandbox may reach; see the package comment for what none
// can open.
type Policy struct {
	Mode Mode `json:"mode"`
	// Allowed are IPv4 ranges, for mode Allowed only.
	Allowed []netip.Prefix `json:"allowed,omitempty"`
}

// Validate returns ErrPolicy with the reason if the policy can't be applied.
func (p Policy) Validate() error {
	_, err := p.normal()
	return err
}

// normal returns the policy with its ranges masked, sorted and none inside
// another: the kernel refuses a set with overlapping elements.
func (p Policy) normal() (Policy, error) {
	switch p.Mode {
	case Open, Blocked:
		if len(p.Allowed) > 0 {
			return p, fmt.Errorf("%w: mode %s takes no ranges", ErrPolicy, p.Mode)
		}
		return p, nil
	case Allowed:
	default:
		return p, fmt.Errorf("%w: mode %q: want open, blocked or allowed", ErrPolicy, p.Mode)
	}
	if len(p.Allowed) > MaxAllowed {
		return p, fmt.Errorf("%w: %d ranges: at most %d", ErrPolicy, len(p.Allowed), MaxAllowed)
	}
	for _, r := range p.Allowed {
		if !r.IsValid() || !r.Addr().Is4() {
			return p, fmt.Errorf("%w: range %s: want IPv4, such as 203.0.113.0/24", ErrPolicy, r)
		}
	}
	p.Allowed = outermost(p.Allowed)
	return p, nil
}

// outermost returns the masked ranges that no other one contains, in order.
func outermost(ranges []netip.Prefix) []netip.Prefix {
	sorted := make([]netip.Prefix, 0, len(ranges))
	for _, r := range ranges {
		sorted = append(sorted, r.Masked())
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	out := sorted[:0]
	for _, r := range sorted {
		if len(out) == 0 || !out[len(out)-1].Overlaps(r) {
			out = append(out, r)
		}
	}
	return out
}

// special are the ranges that no policy opens: everything that the IANA registry
// of special-purpose IPv4 addresses does not call globally reachable, and the
// one public address that a cloud uses for its machines' metadata.
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("168.63.129.16/32"), // Azure
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
}

// denied is special and the configured ranges; IPv6 ones fall away, as all of
// IPv6 is denied.
func denied(more []netip.Prefix) []netip.Prefix {
	all := slices.Clone(special)
	for _, p := range more {
		if p.Addr().Is4() {
			all = append(all, p)
		}
	}
	return outermost(all)
}
