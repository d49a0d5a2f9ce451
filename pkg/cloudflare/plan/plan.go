// Package plan decides what Cloudflare is told, and when: given what is wanted,
// what Cloudflare is known to hold and the time, it returns the next step. It
// does no I/O, so that package cloudflare carries out steps and nothing else.
//
// Three kinds of things are managed, called parts: the weights of one load
// balancer, the switch of each pool, and the DNS records below the domain of the
// tunnels. A part that is nil in what is wanted is left as it is.
//
// Safety: Cloudflare is never told to send its traffic nowhere. Where that is
// wanted, the last state that left something stays, and Target says so.
package plan

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Desired is what the outside world shall see, as the controller of regions knows
// it.
type Desired struct {
	// Weights of the regions, 0 to 1 each.
	Weights map[string]float64 `json:"weights,omitempty"`
	// Drained are the regions that get no traffic whatever their weight, because
	// they are drained or dead: their pools are switched off.
	Drained map[string]bool `json:"drained,omitempty"`
	// Relays are the public addresses of each region's relays: IPv4 and IPv6
	// addresses, or one host name. Nil leaves the DNS records as they are.
	Relays map[string][]string `json:"relays,omitempty"`
	// Domain of the tunnels: *.Domain reaches the relays. Empty leaves the DNS
	// records as they are.
	Domain string `json:"domain,omitempty"`
}

// Rules are what an operator chose.
type Rules struct {
	// Pools of the regions at the load balancer, by region: ids.
	Pools map[string]string
	// LoadBalancer says whether there is one; without, weights are not managed.
	LoadBalancer bool
	// Target is the name that the wildcard points to, such as the load balancer's.
	// Empty: the addresses of the relays that take new traffic.
	Target string
	// TTL of the records in seconds; 1 lets Cloudflare choose.
	TTL int
	// Proxied records answer with Cloudflare's addresses instead of the relays'.
	Proxied bool
	// Every is the least time between two writes.
	Every time.Duration
	// Check is how long it is believed that Cloudflare holds what it was told,
	// before it is read again: others may have changed it.
	Check time.Duration
}

// Edge is what Cloudflare holds of what is managed here.
type Edge struct {
	// Weights in hundredths, by pool. Below zero: none of its own.
	Weights map[string]int `json:"weights,omitempty"`
	// Enabled pools.
	Enabled map[string]bool `json:"enabled,omitempty"`
	// Records in the order of Compare.
	Records []Record `json:"records,omitempty"`
}

// Wanted is what Cloudflare should hold.
type Wanted struct {
	Edge
	// Exact are the weights in hundredths before they were rounded.
	Exact map[string]float64 `json:"exact,omitempty"`
	// Domain that the records belong to.
	Domain string `json:"domain,omitempty"`
}

// Record is one DNS record.
type Record struct {
	Name string `json:"name"`
	// Type is A, AAAA or CNAME.
	Type    string `json:"type"`
	Content string `json:"content"`
	TTL     int    `json:"ttl"`
	Proxied bool   `json:"proxied,omitempty"`
}

// Compare orders records.
func (r Record) Compare(o Record) int {
	return cmp.Or(strings.Compare(r.Name, o.Name), strings.Compare(r.Type, o.Type), strings.Compare(r.Content, o.Content),
		cmp.Compare(r.TTL, o.TTL), boolean(r.Proxied)-boolean(o.Proxied))
}

func boolean(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Part is what one request reads or writes: Weights, Records, or that of a pool.
type Part string

// Parts beside those of pools.
const (
	Weights Part = "weights"
	Records Part = "records"
)

const poolPrefix = "pool/"

// PoolPart is the part that switches a pool.
func PoolPart(pool string) Part { return Part(poolPrefix + pool) }

// Pool is the inverse of PoolPart.
func (p Part) Pool() (string, bool) { return strings.CutPrefix(string(p), poolPrefix) }

// Kind names the part without saying which pool: for metrics.
func (p Part) Kind() string {
	if _, ok := p.Pool(); ok {
		return "pool"
	}
	return string(p)
}

// Parts of what is wanted, in the order in which they are written when nothing
// else decides: traffic is first let in, then spread, then kept out.
func (w Wanted) Parts() []Part {
	var parts []Part
	for _, on := range []bool{true, false} {
		for _, pool := range sortedKeys(w.Enabled) {
			if w.Enabled[pool] == on {
				parts = append(parts, PoolPart(pool))
			}
		}
		if !on {
			break
		}
		if w.Weights != nil {
			parts = append(parts, Weights)
		}
		if w.Records != nil {
			parts = append(parts, Records)
		}
	}
	return parts
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
