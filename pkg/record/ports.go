package record

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// Tunnels returns the public addresses of ports, allocating raw TCP ports
// where have does not hold one yet. Errors: Quota when no port is free (scope
// "region"), or the tenant holds its share of them ("tenant").
func (s *Store) Tunnels(ctx context.Context, tenant, id, region string, front tunnel.Front, ports []*siroccov1.Port, have []*siroccov1.Tunnel) ([]*siroccov1.Tunnel, error) {
	var out []*siroccov1.Tunnel
	// used are the ports that this sandbox has given away already, taken those
	// that this call has allocated.
	var used, taken []uint16
	for _, t := range have {
		used = append(used, tunnel.PublicPort(t))
	}
	for _, p := range ports {
		var public uint16
		if p.GetProtocol() == siroccov1.Protocol_PROTOCOL_TCP {
			public = havePort(have, p)
			if public == 0 {
				var fresh bool
				var err error
				if public, fresh, err = s.allocatePort(ctx, region, front, tenant, id, used); err != nil {
					for _, t := range taken {
						s.releasePort(context.WithoutCancel(ctx), region, t, tenant, id)
					}
					return nil, err
				}
				used = append(used, public)
				if fresh {
					taken = append(taken, public)
				}
			}
		}
		out = append(out, front.Tunnel(id, p, public))
	}
	return out, nil
}

func havePort(have []*siroccov1.Tunnel, p *siroccov1.Port) uint16 {
	for _, t := range have {
		if t.GetPort() == p.GetPort() && t.GetProtocol() == p.GetProtocol() {
			return tunnel.PublicPort(t)
		}
	}
	return 0
}

// allocatePort returns a public port that the sandbox holds and that is not in
// used, fresh if it did not hold it before. Two calls for one sandbox at once,
// or a call after one that was cut off, come to the same ports: none leaks.
//
// A port is held first and judged then, by the order in which the server stored
// the claims: so that however many calls come at once, a tenant keeps no more than
// its share.
func (s *Store) allocatePort(ctx context.Context, region string, front tunnel.Front, tenant, id string, used []uint16) (port uint16, fresh bool, err error) {
	if front.TCPPorts() == 0 {
		return 0, false, fault.Invalid("ports", "raw TCP is not offered here: the operator has set no range of public ports")
	}
	port, revision, fresh, err := s.claimPort(ctx, region, front, tenant, id, used)
	if err != nil {
		return 0, false, err
	}
	most := front.TCPQuota()
	if most == front.TCPPorts() {
		return port, fresh, nil
	}
	before, err := s.portsBefore(ctx, region, tenant, revision)
	if err == nil && before >= most {
		err = &fault.Fault{Code: fault.Quota, Scope: "tenant", RetryAfter: 10 * time.Second, Message: fmt.Sprintf(
			"you hold %d public TCP ports; %d of the region's %d are allowed", before, most, front.TCPPorts())}
	}
	if err != nil {
		s.releasePort(context.WithoutCancel(ctx), region, port, tenant, id)
		return 0, false, err
	}
	return port, fresh, nil
}

// claimPort claims a port for a sandbox, and returns the revision of the claim.
func (s *Store) claimPort(ctx context.Context, region string, front tunnel.Front, tenant, id string, used []uint16) (port uint16, revision uint64, fresh bool, err error) {
	n := front.TCPPorts()
	h := fnv.New32a()
	h.Write([]byte(id))
	start := int(h.Sum32() % uint32(n)) //nolint:gosec // n is at most 65,536
	holder := subject.RecordKey(tenant, id)
	for i := range n {
		port := front.TCPFirst + uint16((start+i)%n) //nolint:gosec // below TCPLast
		if slices.Contains(used, port) {
			continue
		}
		k := subject.PortKey(region, port)
		revision, err := s.ports.Create(ctx, k, []byte(holder))
		if err == nil {
			return port, revision, true, nil
		}
		if !bus.IsConflict(err) {
			return 0, 0, false, busError("allocate port", err)
		}
		if entry, err := s.ports.Get(ctx, k); err == nil && string(entry.Value()) == holder {
			return port, entry.Revision(), false, nil
		}
	}
	return 0, 0, false, &fault.Fault{Code: fault.Quota, Scope: "region", Message: fmt.Sprintf("all %d public TCP ports are in use", n), RetryAfter: 10 * time.Second}
}

// portsBefore counts the ports of a region that a tenant claimed before a
// revision.
func (s *Store) portsBefore(ctx context.Context, region, tenant string, revision uint64) (n int, err error) {
	claims, err := s.ports.Watch(ctx, subject.PortKeys(region), jetstream.IgnoreDeletes())
	if err != nil {
		return 0, busError("count ports", err)
	}
	defer func() { _ = claims.Stop() }()
	for {
		select {
		case entry, ok := <-claims.Updates():
			if !ok {
				return 0, busError("count ports", nats.ErrConnectionClosed)
			}
			if entry == nil {
				return n, nil // all that there were
			}
			if holder, _, err := subject.ParseRecordKey(string(entry.Value())); err == nil && holder == tenant && entry.Revision() < revision {
				n++
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (s *Store) releasePort(ctx context.Context, region string, port uint16, tenant, id string) {
	k := subject.PortKey(region, port)
	if entry, err := s.ports.Get(ctx, k); err == nil && string(entry.Value()) == subject.RecordKey(tenant, id) {
		_ = s.ports.Delete(ctx, k, jetstream.LastRevision(entry.Revision()))
	}
}
