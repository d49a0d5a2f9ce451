package network

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"
)

// Thousands of slots come and go in one transaction each: no answer of the kernel's is
// lost for want of room, which would be waited for for ever.
func TestThousandsAtOnce(t *testing.T) {
	newWorld(t)
	p := newPool(t, Config{Node: "many"})
	acquire(t, p, "sb-own", Policy{Mode: Open}) // opens it, and stays
	r := p.rules
	const many = 3000
	held := map[string]*Slot{}
	address := netip.MustParseAddr("100.64.0.1")
	for i := range many {
		s := &Slot{Interface: fmt.Sprintf("many-%d", i), Address: address}
		if s.Policy.Mode = Open; i%3 == 0 {
			s.Policy = Policy{Mode: Allowed, Allowed: prefixes(site+"/32", "20.0.0.0/8")}
		}
		held[s.Interface] = s
		address = address.Next().Next()
	}
	inTime := func(what string, do func() error) {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- do() }()
		select {
		case err := <-done:
			check(t, err)
		case <-time.After(time.Minute):
			t.Fatalf("%s does not end", what)
		}
	}
	whole := func(want int) {
		t.Helper()
		inTime("looking", func() error {
			if again, err := r.guard(); again || err != nil || len(r.inside) != want {
				return fmt.Errorf("the table had to be written again: %v, %w; it holds %d slots, want %d", again, err, len(r.inside), want)
			}
			return nil
		})
	}
	inTime("putting the table in place", func() error { return r.install(nil, maps.Clone(held)) })
	whole(many + 1)

	r.mu.Lock() // as long as a transaction takes, all others gather
	removed := make(chan error, many)
	for _, s := range held {
		go func() { removed <- r.remove(s) }()
	}
	eventually(t, "all wait", func() bool {
		r.waiting.Lock()
		defer r.waiting.Unlock()
		return len(r.removals) == many
	})
	r.mu.Unlock()
	inTime("removing", func() error {
		for range many {
			if err := <-removed; err != nil {
				return err
			}
		}
		return nil
	})
	whole(1)
	inTime("adding one", func() error { return r.add(held["many-0"]) })
	whole(2)
}
