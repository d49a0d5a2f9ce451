package abroad

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// pingEvery and pingTimeout say how a bus is asked for a sign of life. A bus that
	// can't be connected to is silent at once; one that hangs, after silentAfter, which
	// leaves room for two answers that a busy machine delays.
	pingEvery   = time.Second
	pingTimeout = 900 * time.Millisecond
	silentAfter = 3 * time.Second
)

// region is what is remembered of one region.
type region struct {
	peer *peer.Peer

	mu sync.RWMutex
	// records are by tenant and id.
	records map[string]map[string]kept
	// heard is when its bus last gave a sign of life.
	heard time.Time
	// complete: all that was there was seen once. connection is on which connection, by
	// its number: on another one there may be news that were not seen yet.
	complete   bool
	connection uint64
}

// kept is a record as it was written, and what it is looked up by.
type kept struct {
	value    []byte
	revision uint64
	// name is that of a sandbox that has not ended.
	name string
	// shadow: it has moved to another region.
	shadow bool
}

// follow keeps the records until ctx ends, and then returns nil.
func (r *region) follow(ctx context.Context) error {
	var seen map[string]bool // nil once it has caught up
	var connection uint64
	return bus.Watch(ctx, r.peer.JS, subject.BucketSandboxes, ">", func() {
		seen, connection = map[string]bool{}, r.connections()
	}, func(e jetstream.KeyValueEntry) {
		if e == nil {
			r.caughtUp(seen, connection)
			seen = nil
			return
		}
		if seen != nil {
			seen[e.Key()] = true
		}
		r.apply(e)
	})
}

// connections counts the connections to the region so far.
func (r *region) connections() uint64 { return r.peer.NC.Stats().Reconnects }

// caughtUp drops what was deleted while nobody listened.
func (r *region) caughtUp(seen map[string]bool, connection uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for tenant, of := range r.records {
		for id := range of {
			if !seen[subject.RecordKey(tenant, id)] {
				r.drop(tenant, id)
			}
		}
	}
	r.complete, r.connection = true, connection
}

func (r *region) drop(tenant, id string) {
	delete(r.records[tenant], id)
	if len(r.records[tenant]) == 0 {
		delete(r.records, tenant)
	}
}

// apply takes in one entry. What can't be read is not there.
func (r *region) apply(e jetstream.KeyValueEntry) {
	tenant, id, err := subject.ParseRecordKey(e.Key())
	if err != nil {
		return
	}
	sb := &siroccov1.Sandbox{}
	put := e.Operation() == jetstream.KeyValuePut && proto.Unmarshal(e.Value(), sb) == nil
	r.mu.Lock()
	defer r.mu.Unlock()
	if !put {
		r.drop(tenant, id)
		return
	}
	// The message of which the value is a part would stay in memory too.
	k := kept{value: bytes.Clone(e.Value()), revision: e.Revision(), shadow: sb.GetPlacement().GetRegion() != "" && sb.GetPlacement().GetRegion() != r.peer.Region}
	if !lifecycle.Ended(sb.GetState()) {
		k.name = sb.GetSpec().GetName()
	}
	if r.records[tenant] == nil {
		r.records[tenant] = map[string]kept{}
	}
	r.records[tenant][id] = k
}

func (k kept) decode() *siroccov1.Sandbox {
	sb := &siroccov1.Sandbox{}
	if proto.Unmarshal(k.value, sb) != nil {
		return nil // cannot be: it was read before
	}
	sb.Revision = k.revision
	return sb
}

func (r *region) find(tenant, idOrName string) *siroccov1.Sandbox {
	r.mu.RLock()
	defer r.mu.RUnlock()
	of := r.records[tenant]
	if k, ok := of[idOrName]; ok {
		if k.shadow {
			return nil
		}
		return k.decode()
	}
	for _, k := range of {
		if k.name == idOrName && k.name != "" && !k.shadow {
			return k.decode()
		}
	}
	return nil
}

func (r *region) each(tenant string, f func(*siroccov1.Sandbox)) {
	r.mu.RLock()
	of := make([]kept, 0, len(r.records[tenant]))
	for _, k := range r.records[tenant] {
		if !k.shadow {
			of = append(of, k)
		}
	}
	r.mu.RUnlock()
	for _, k := range of {
		if sb := k.decode(); sb != nil {
			f(sb)
		}
	}
}

func (r *region) len() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	n := 0
	for _, of := range r.records {
		n += len(of)
	}
	return n
}

// listen asks the bus for signs of life until ctx ends.
func (r *region) listen(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	was := false
	for {
		r.ping(ctx)
		since, silent := r.silence(time.Now())
		switch {
		case silent && !was:
			log.WarnContext(ctx, "a region is silent; what is remembered of it is answered with", "peer", r.peer.Region, "since", since)
		case was && !silent:
			log.InfoContext(ctx, "a region is heard again", "peer", r.peer.Region)
		}
		was = silent
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (r *region) ping(ctx context.Context) {
	if !r.peer.Alive() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if r.peer.NC.FlushWithContext(ctx) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.heard = time.Now()
}

// silence says whether the bus does not answer, and when it last did.
func (r *region) silence(now time.Time) (since time.Time, silent bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.heard, !r.peer.Alive() || now.Sub(r.heard) > silentAfter
}

// fresh says whether what is remembered is what is there, but for a moment.
func (r *region) fresh() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.complete && r.connection == r.connections()
}

func (r *region) known() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.complete
}

// loss describes a silence.
func loss(name string, since, now time.Time, lostAfter time.Duration) *siroccov1.RegionLoss {
	return &siroccov1.RegionLoss{
		Region: name, Since: timestamppb.New(since), Dead: now.Sub(since) >= lostAfter,
		Note: "region " + name + " has been silent since " + clock(since),
	}
}
