// Package peer reaches the buses of other regions.
//
// Regions share nothing that they need to live: each has a bus of its own, and who
// has something to say to another region opens a connection to that region's bus. A
// connection is made when it is first asked for, without waiting for it, and stays:
// while the other region is away, what is sent to it fails, and nothing else does.
package peer

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// Peer is another region, or what there is of it: NC reconnects by itself for ever.
type Peer struct {
	Region string
	NC     *nats.Conn
	JS     jetstream.JetStream
}

// Alive says whether the other region's bus can be reached now.
func (p *Peer) Alive() bool { return p.NC.IsConnected() }

// Dial connects to a bus by its URL, without waiting until it is reached.
type Dial func(url string) (*nats.Conn, error)

// Set is the other regions that a service may speak to. Its methods may be called
// concurrently, and on a nil Set, which is empty.
type Set struct {
	urls map[string]string
	// regions are the names, sorted: they are asked for with every request.
	regions []string
	dial    Dial

	mu   sync.Mutex
	open map[string]*Peer
}

// Parse reads "us=nats://a:4222,nats://b:4222;ap=nats://c:4222": regions separated by
// semicolons, each with the URLs of its servers. Blank is no region.
func Parse(text string) (map[string]string, error) {
	urls := map[string]string{}
	for entry := range strings.SplitSeq(text, ";") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		region, servers, ok := strings.Cut(entry, "=")
		if !ok || !subject.ValidToken(region) {
			return nil, fmt.Errorf("%q is not region=URL", entry)
		}
		if urls[region] != "" {
			return nil, fmt.Errorf("region %s is named twice", region)
		}
		for server := range strings.SplitSeq(servers, ",") {
			if u, err := url.Parse(strings.TrimSpace(server)); err != nil || u.Host == "" {
				return nil, fmt.Errorf("%q of region %s is not a URL such as nats://127.0.0.1:4222", server, region)
			}
		}
		urls[region] = servers
	}
	return urls, nil
}

// NewSet makes the set of all regions but own, so that every service of every region
// can be given the same list.
func NewSet(own string, urls map[string]string, dial Dial) *Set {
	s := &Set{urls: map[string]string{}, dial: dial, open: map[string]*Peer{}}
	for region, u := range urls {
		if region != own {
			s.urls[region] = u
		}
	}
	// Without room behind the last: what a caller appends is the caller's.
	s.regions = slices.Clip(slices.Sorted(maps.Keys(s.urls)))
	return s
}

// Regions returns the names, sorted. Callers may append to them, but not change them.
func (s *Set) Regions() []string {
	if s == nil {
		return nil
	}
	return s.regions
}

// Get returns a region's peer. The error says that there is no such region, or that
// its address can never work.
func (s *Set) Get(region string) (*Peer, error) {
	if s == nil || s.urls[region] == "" {
		return nil, fmt.Errorf("region %s is not among the peers", region)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.open[region]; p != nil {
		return p, nil
	}
	nc, err := s.dial(s.urls[region])
	if err != nil {
		return nil, fmt.Errorf("connect to region %s: %w", region, err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("connect to region %s: %w", region, err)
	}
	p := &Peer{Region: region, NC: nc, JS: js}
	s.open[region] = p
	return p, nil
}

// Close ends the connections.
func (s *Set) Close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for region, p := range s.open {
		p.NC.Close()
		delete(s.open, region)
	}
}
