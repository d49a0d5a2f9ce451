package record

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// Acceptance is a request that is to become a record.
type Acceptance struct {
	Tenant string
	// Key is the idempotency key; a token of a subject.
	Key string
	// ID is set when the key leads to this sandbox already, because it was claimed
	// or is a minted one (see Mint): nothing is then asked or written about it.
	ID string
	// At is when the request was accepted; zero means now.
	At time.Time
	// Spec has been through admission.Normalize.
	Spec   *siroccov1.CreateSandboxRequest
	Region string
	Front  tunnel.Front
}

// claim is the value of an idempotency key.
type claim struct {
	ID          string `json:"id,omitempty"`
	Fingerprint string `json:"fingerprint"`
	// Region is set for a sandbox of another region, which knows its id.
	Region string `json:"region,omitempty"`
}

// Accept makes the request durable: it claims the idempotency key, the name
// and the public ports and writes the record. The same key gives the same
// sandbox, whoever asks, as often as they ask; existed says so. It may be cut
// off anywhere: the next call with the same key goes on, and what a call never
// came back for is freed by the reaper.
//
// Errors: InvalidArgument (the key was used for another request),
// AlreadyExists (the name is taken), Quota (no public port is free, or the
// tenant holds its share of them), Unavailable; ElsewhereError.
func (s *Store) Accept(ctx context.Context, a Acceptance) (sb *siroccov1.Sandbox, existed bool, err error) {
	sb, existed, err = s.Claim(ctx, a)
	if err != nil || sb.GetRevision() != 0 {
		return sb, existed, err
	}
	written, err := s.Create(ctx, sb)
	if errors.Is(err, ErrConflict) {
		// Two calls with the same key at once; the other wrote first.
		sb, err = s.Get(ctx, a.Tenant, sb.GetId())
		return sb, true, err
	}
	return written, existed, err
}

// Claim is Accept without the writing of a new record: it is returned with
// revision 0, for the caller to take its next step and write both at once. Until
// then only the key, if it is claimed, remembers the sandbox: existed then says
// that the key was, by a call that is under way or was cut off.
func (s *Store) Claim(ctx context.Context, a Acceptance) (sb *siroccov1.Sandbox, existed bool, err error) {
	id := a.ID
	if id == "" {
		fingerprint, err := fingerprintOf(a.Spec)
		if err != nil {
			return nil, false, err
		}
		if id, existed, err = s.claimKey(ctx, a.Tenant, a.Key, fingerprint); err != nil {
			return nil, false, err
		}
	}
	// What holds a name or a port was written when these were claimed.
	if existed || a.ID != "" && !HoldsNothing(a.Spec) {
		sb, err := s.Get(ctx, a.Tenant, id)
		if fault.CodeOf(err) != fault.NotFound {
			return sb, true, err
		}
		// Claimed, but cut off before the record: go on from here.
	}
	if err := s.ClaimName(ctx, a.Tenant, a.Spec.GetName(), id); err != nil {
		return nil, false, err
	}
	tunnels, err := s.Tunnels(ctx, a.Tenant, id, a.Region, a.Front, a.Spec.GetPorts(), nil)
	if err != nil {
		s.ReleaseName(context.WithoutCancel(ctx), a.Tenant, a.Spec.GetName(), id)
		return nil, false, err
	}
	at := a.At
	if at.IsZero() {
		at = time.Now()
	}
	sb = lifecycle.Accept(id, a.Tenant, a.Key, a.Spec, at)
	sb.Tunnels = tunnels
	return sb, existed, nil
}

// minted starts the keys that are made by Mint.
const minted = "auto-"

// Mint makes an id and a key for a request that came without one. Such a key
// holds the id, so that nothing has to remember where it leads.
func Mint() (id, key string) {
	id = sandboxid.New()
	return id, minted + id
}

// IsMinted says whether a key has the form of one that Mint makes. A tenant may
// not choose such a key: it would choose its sandbox's id.
func IsMinted(key string) bool {
	id, ok := strings.CutPrefix(key, minted)
	return ok && sandboxid.Valid(id)
}

// HoldsNothing says whether a request claims nothing beside its key: no name and
// no public port, which others may hold already.
func HoldsNothing(spec *siroccov1.CreateSandboxRequest) bool {
	return spec.GetName() == "" && !slices.ContainsFunc(spec.GetPorts(), func(p *siroccov1.Port) bool {
		return p.GetProtocol() == siroccov1.Protocol_PROTOCOL_TCP
	})
}

func (s *Store) claimKey(ctx context.Context, tenant, key, fingerprint string) (id string, known bool, err error) {
	mine := claim{ID: sandboxid.New(), Fingerprint: fingerprint}
	value, err := json.Marshal(mine)
	if err != nil {
		return "", false, err
	}
	if _, err = s.idempotency.Create(ctx, subject.RecordKey(tenant, key), value); err == nil {
		return mine.ID, false, nil
	}
	if !bus.IsConflict(err) {
		return "", false, busError("claim key "+key, err)
	}
	theirs, err := s.claimed(ctx, tenant, key, fingerprint)
	if err == nil && theirs.Region != "" {
		err = &ElsewhereError{theirs.Region}
	}
	return theirs.ID, true, err
}

// claimed reads the claim of a key that was used before, for the same request.
func (s *Store) claimed(ctx context.Context, tenant, key, fingerprint string) (c claim, err error) {
	entry, err := s.idempotency.Get(ctx, subject.RecordKey(tenant, key))
	if err != nil {
		return c, busError("read key "+key, err)
	}
	if err := json.Unmarshal(entry.Value(), &c); err != nil {
		return c, fmt.Errorf("decode key %s: %w", key, err)
	}
	if c.Fingerprint != fingerprint {
		return c, fault.Invalid("idempotency_key", "the key %q was used for another request less than 24 h ago; use a new key", key)
	}
	return c, nil
}

// ClaimName makes name lead to id; an empty name is none. A name whose holder has
// ended, or was never written, is free. Error: AlreadyExists.
func (s *Store) ClaimName(ctx context.Context, tenant, name, id string) error {
	if name == "" {
		return nil
	}
	k := subject.RecordKey(tenant, name)
	for {
		_, err := s.names.Create(ctx, k, []byte(id))
		if err == nil {
			return nil
		}
		if !bus.IsConflict(err) {
			return busError("claim name "+name, err)
		}
		entry, err := s.names.Get(ctx, k)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue // freed meanwhile
		}
		if err != nil {
			return busError("read name "+name, err)
		}
		holder := string(entry.Value())
		if holder == id {
			return nil
		}
		taken, err := s.holds(ctx, tenant, holder)
		if err != nil {
			return err
		}
		if taken {
			return fault.New(fault.AlreadyExists, "the name %q is taken by %s", name, holder)
		}
		if _, err = s.names.Update(ctx, k, []byte(id), entry.Revision()); err == nil {
			return nil
		}
		if !bus.IsConflict(err) {
			return busError("claim name "+name, err)
		}
	}
}

// orphanAge is how long a name or a port may be held by a sandbox that has no
// record: longer than an Accept takes.
const orphanAge = time.Minute

// holds says whether a sandbox has a right to its name and ports.
func (s *Store) holds(ctx context.Context, tenant, id string) (bool, error) {
	sb, err := s.Get(ctx, tenant, id)
	if fault.CodeOf(err) == fault.NotFound {
		made, terr := sandboxid.Time(id)
		return terr == nil && time.Since(made) < orphanAge, nil
	}
	if err != nil {
		return false, err
	}
	return !lifecycle.Ended(sb.GetState()), nil
}

// ByName returns the id of the sandbox that holds a name. Errors: NotFound.
func (s *Store) ByName(ctx context.Context, tenant, name string) (string, error) {
	if !subject.ValidToken(name) {
		return "", notFound(name)
	}
	entry, err := s.names.Get(ctx, subject.RecordKey(tenant, name))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return "", notFound(name)
	}
	if err != nil {
		return "", busError("read name "+name, err)
	}
	return string(entry.Value()), nil
}

// ReleaseName frees a name if id still holds it. It is best effort: a name
// whose holder has ended is free anyway.
func (s *Store) ReleaseName(ctx context.Context, tenant, name, id string) {
	if name == "" {
		return
	}
	k := subject.RecordKey(tenant, name)
	if entry, err := s.names.Get(ctx, k); err == nil && string(entry.Value()) == id {
		_ = s.names.Delete(ctx, k, jetstream.LastRevision(entry.Revision()))
	}
}

// Release frees what an ended sandbox held beside its record: name and ports.
// Best effort; the reaper comes again.
func (s *Store) Release(ctx context.Context, sb *siroccov1.Sandbox, region string) {
	s.ReleaseName(ctx, sb.GetTenant(), sb.GetSpec().GetName(), sb.GetId())
	for _, t := range sb.GetTunnels() {
		if port := tunnel.PublicPort(t); port != 0 {
			s.releasePort(ctx, region, port, sb.GetTenant(), sb.GetId())
		}
	}
}

// SweepClaims frees names and ports whose sandbox has ended or was never
// written, and returns what it freed.
func (s *Store) SweepClaims(ctx context.Context) ([]string, error) {
	var freed []string
	sweep := func(kv jetstream.KeyValue, holder func(key, value string) (tenant, id string, err error)) error {
		keys, err := kv.ListKeys(ctx)
		if err != nil {
			return busError("list "+kv.Bucket(), err)
		}
		for key := range keys.Keys() {
			entry, err := kv.Get(ctx, key)
			if errors.Is(err, jetstream.ErrKeyNotFound) {
				continue
			}
			if err != nil {
				return busError("read "+key, err)
			}
			tenant, id, err := holder(key, string(entry.Value()))
			held := false
			if err == nil {
				if held, err = s.holds(ctx, tenant, id); err != nil {
					return err
				}
			}
			if !held {
				if err := kv.Delete(ctx, key, jetstream.LastRevision(entry.Revision())); err == nil {
					freed = append(freed, kv.Bucket()+"/"+key)
				}
			}
		}
		return nil
	}
	err := sweep(s.names, func(key, value string) (string, string, error) {
		tenant, _, err := subject.ParseRecordKey(key)
		return tenant, value, err
	})
	return freed, errors.Join(err, sweep(s.ports, func(_, value string) (string, string, error) {
		return subject.ParseRecordKey(value)
	}))
}

// fingerprintOf tells whether two requests are the same, whatever they wait
// for.
func fingerprintOf(spec *siroccov1.CreateSandboxRequest) (string, error) {
	c := proto.CloneOf(spec)
	c.IdempotencyKey, c.Wait, c.StartDeadline = "", siroccov1.Wait_WAIT_UNSPECIFIED, nil
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("fingerprint of a request: %w", err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:16]), nil
}
