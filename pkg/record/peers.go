package record

import (
	"context"
	"sync"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/peer"
)

// Peers are the records of other regions, opened when they are first asked for. It is
// safe for concurrent use.
type Peers struct {
	peers *peer.Set

	mu   sync.Mutex
	open map[string]*Store
}

// NewPeers makes an empty Peers of a set. It does no I/O.
func NewPeers(peers *peer.Set) *Peers { return &Peers{peers: peers, open: map[string]*Store{}} }

// Of returns the records of a region. Errors: Unavailable while its bus can't be
// reached; and that it is none of the peers.
func (p *Peers) Of(ctx context.Context, region string) (*Store, error) {
	there, err := p.peers.Get(region)
	if err != nil {
		return nil, err
	}
	if !there.Alive() {
		return nil, fault.New(fault.Unavailable, "region %s can't be reached", region)
	}
	p.mu.Lock()
	store := p.open[region]
	p.mu.Unlock()
	if store != nil {
		return store, nil
	}
	// Without the lock: a bus that hangs keeps nobody from the records of another.
	if store, err = Open(ctx, there.JS); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[region] = store
	return store, nil
}
