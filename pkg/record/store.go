// Package record keeps the truth about each sandbox: one record in a JetStream
// key-value bucket, changed only by compare-and-swap. The write is the event:
// the server derives the event stream from the bucket, so there is no second
// message that could be lost.
//
// Safety: of two writers that read the same revision, one succeeds. Liveness:
// Update reads again and decides again, so a writer succeeds as soon as the
// others pause.
package record

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/move"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/topology"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// ErrConflict says that somebody else wrote the record first.
var ErrConflict = errors.New("record: written by somebody else meanwhile")

// Store reads and writes records. It is safe for concurrent use.
type Store struct {
	js          jetstream.JetStream
	sandboxes   jetstream.KeyValue
	idempotency jetstream.KeyValue
	names       jetstream.KeyValue
	ports       jetstream.KeyValue
}

// Open binds to the buckets, which must exist (see package topology).
func Open(ctx context.Context, js jetstream.JetStream) (*Store, error) {
	s := &Store{js: js}
	for name, kv := range map[string]*jetstream.KeyValue{
		subject.BucketSandboxes: &s.sandboxes, subject.BucketIdempotency: &s.idempotency,
		subject.BucketNames: &s.names, subject.BucketPorts: &s.ports,
	} {
		opened, err := js.KeyValue(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("open bucket %s: %w", name, err)
		}
		*kv = bus.Patient(opened)
	}
	return s, nil
}

// Get reads a record, with its revision filled in. What it returns may be a
// moment old: only a write by that revision makes sure. That there is none is
// what the leader of the stream says, for a node ends what has no record.
// Errors: NotFound.
func (s *Store) Get(ctx context.Context, tenant, id string) (*siroccov1.Sandbox, error) {
	if !subject.ValidToken(tenant) || !subject.ValidToken(id) {
		return nil, notFound(id)
	}
	key := subject.RecordKey(tenant, id)
	entry, err := s.sandboxes.Get(ctx, key)
	if err == nil {
		return decode(key, entry.Value(), entry.Revision())
	}
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return s.latest(ctx, tenant, id)
	}
	return nil, busError("read record "+id, err)
}

// GetNewer is Get for who was told that a record was written after the revision than:
// where a server has not heard of that yet, the leader of the stream has. If there is
// nothing newer after all, it returns what there is.
func (s *Store) GetNewer(ctx context.Context, tenant, id string, than uint64) (*siroccov1.Sandbox, error) {
	sb, err := s.Get(ctx, tenant, id)
	if err != nil || sb.GetRevision() > than {
		return sb, err
	}
	return s.latest(ctx, tenant, id)
}

// latest is Get from the leader of the stream.
func (s *Store) latest(ctx context.Context, tenant, id string) (*siroccov1.Sandbox, error) {
	key := subject.RecordKey(tenant, id)
	sb, err := bus.Again(ctx, func(ctx context.Context, _ bool) (*siroccov1.Sandbox, error) {
		value, revision, err := bus.Latest(ctx, s.js, subject.BucketSandboxes, key)
		if err != nil {
			return nil, err
		}
		return decode(key, value, revision)
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, busError("read record "+id, err)
	}
	return sb, nil
}

// Create writes the first revision of a record. Errors: ErrConflict when there
// is one already.
func (s *Store) Create(ctx context.Context, sb *siroccov1.Sandbox) (*siroccov1.Sandbox, error) {
	return s.write(ctx, sb, 0, true)
}

// Announce writes the record of a sandbox that is to come from another region to
// region, whose records these are, over what it has left here if it was here before.
func (s *Store) Announce(ctx context.Context, parcel *siroccov1.Sandbox, region string) error {
	_, err := s.put(ctx, parcel, func(here *siroccov1.Sandbox, at time.Time) (*siroccov1.Sandbox, bool) {
		return move.Announce(here, parcel, region, at)
	})
	return err
}

// Land writes that a sandbox has come to region, whose records these are: see move.Land.
func (s *Store) Land(ctx context.Context, committed *siroccov1.Sandbox, region string, arrive lifecycle.Arrive) (*siroccov1.Sandbox, error) {
	return s.put(ctx, committed, func(here *siroccov1.Sandbox, at time.Time) (*siroccov1.Sandbox, bool) {
		return move.Land(here, committed, region, arrive, at)
	})
}

// put writes what decide makes of the record that is here, nil for none, again and again
// until it is not overtaken.
func (s *Store) put(ctx context.Context, sb *siroccov1.Sandbox, decide func(here *siroccov1.Sandbox, at time.Time) (*siroccov1.Sandbox, bool)) (*siroccov1.Sandbox, error) {
	for {
		here, err := s.latest(ctx, sb.GetTenant(), sb.GetId())
		if err != nil && fault.CodeOf(err) != fault.NotFound {
			return nil, err
		}
		next, write := decide(here, time.Now())
		if !write {
			return next, nil
		}
		written, err := s.write(ctx, next, here.GetRevision(), next.GetState() != here.GetState())
		if !errors.Is(err, ErrConflict) {
			return written, err
		}
		if here == nil {
			// Of a record that was deleted the bus remembers the deletion for a while.
			select {
			case <-time.After(askDeleted):
			case <-ctx.Done():
				return nil, fault.From(ctx.Err())
			}
		}
	}
}

// askDeleted is how often put looks whether a deletion is forgotten.
const askDeleted = time.Second

// Swap writes the record over the revision that it was read with, and returns
// it with the new revision. Errors: ErrConflict.
func (s *Store) Swap(ctx context.Context, sb *siroccov1.Sandbox, stateChanged bool) (*siroccov1.Sandbox, error) {
	return s.write(ctx, sb, sb.GetRevision(), stateChanged)
}

// Update reads a record, decides by step and writes, again and again until it
// is not overtaken. A step that gives lifecycle.ErrNoChange writes nothing: the
// record is returned as it is, with a nil error. from may be nil, or a copy
// that saves the first read. Once it was overtaken it decides by what the leader of
// the stream holds: by what a server holds that is behind, a step might seem to have
// been taken, or to be too early, and would be dropped.
func (s *Store) Update(ctx context.Context, tenant, id string, from *siroccov1.Sandbox, step lifecycle.Step) (*siroccov1.Sandbox, error) {
	sb := from
	for read := s.Get; ; read = s.latest {
		if sb == nil {
			var err error
			if sb, err = read(ctx, tenant, id); err != nil {
				return nil, err
			}
		}
		next, err := lifecycle.Apply(sb, step, time.Now())
		if errors.Is(err, lifecycle.ErrNoChange) {
			return sb, nil
		}
		if err != nil {
			return sb, err
		}
		written, err := s.Swap(ctx, next, next.GetState() != sb.GetState())
		if !errors.Is(err, ErrConflict) {
			return written, err
		}
		sb = nil
	}
}

// Delete forgets a record for good. Only for records that have ended and whose
// time is over.
func (s *Store) Delete(ctx context.Context, tenant, id string) error {
	err := s.sandboxes.Purge(ctx, subject.RecordKey(tenant, id), jetstream.PurgeTTL(topology.ForgottenTTL))
	if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return busError("delete record "+id, err)
	}
	return nil
}

func (s *Store) write(ctx context.Context, sb *siroccov1.Sandbox, revision uint64, stateChanged bool) (*siroccov1.Sandbox, error) {
	stored := proto.CloneOf(sb)
	stored.Revision = 0
	msg, err := bus.NewMsg(ctx, "$KV."+subject.BucketSandboxes+"."+subject.RecordKey(sb.GetTenant(), sb.GetId()), stored)
	if err != nil {
		return nil, fmt.Errorf("encode record %s: %w", sb.GetId(), err)
	}
	setFact(msg.Header, sb, stateChanged)
	stored.Revision, err = bus.Again(ctx, func(ctx context.Context, again bool) (uint64, error) {
		ack, err := s.js.PublishMsg(ctx, msg, jetstream.WithExpectLastSequencePerSubject(revision))
		if err == nil {
			return ack.Sequence, nil
		}
		if again && bus.IsConflict(err) {
			// Perhaps by this call itself, whose first answer got lost.
			entry, gerr := s.sandboxes.Get(ctx, subject.RecordKey(sb.GetTenant(), sb.GetId()))
			if gerr == nil && entry.Revision() > revision && bytes.Equal(entry.Value(), msg.Data) {
				return entry.Revision(), nil
			}
		}
		return 0, err
	})
	switch {
	case err == nil:
		return stored, nil
	case bus.IsConflict(err):
		return nil, fmt.Errorf("write record %s: %w", sb.GetId(), ErrConflict)
	}
	return nil, busError("write record "+sb.GetId(), err)
}

// fact is the body of HeaderFact.
type fact struct {
	ID    string `json:"id"`
	State string `json:"state"`
	// Entered names all states that a first revision has gone through, if there
	// is more than one: every change is in some event.
	Entered []string `json:"entered,omitempty"`
	Epoch   uint64   `json:"epoch,omitempty"`
	Node    string   `json:"node,omitempty"`
	Cause   string   `json:"cause,omitempty"`
	Exit    *int32   `json:"exit_code,omitempty"`
}

func setFact(h nats.Header, sb *siroccov1.Sandbox, stateChanged bool) {
	event := "updated"
	if stateChanged {
		event = StateName(sb.GetState())
	}
	f := fact{ID: sb.GetId(), State: StateName(sb.GetState()), Epoch: sb.GetPlacement().GetEpoch(), Node: sb.GetPlacement().GetNode()}
	if past := sb.GetHistory(); sb.GetRevision() == 0 && len(past) > 1 {
		for _, t := range past {
			f.Entered = append(f.Entered, StateName(t.GetState()))
		}
	}
	if end := sb.GetEnd(); end != nil {
		f.Cause, f.Exit = CauseName(end.GetCause()), end.ExitCode
	}
	text, err := json.Marshal(f)
	if err != nil {
		text = []byte("{}") // cannot be: the type holds plain values only
	}
	h.Set(subject.HeaderEvent, event)
	h.Set(subject.HeaderFact, string(text))
}

// StateName is a state as people and headers write it: "running".
func StateName(s siroccov1.State) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "STATE_"))
}

// CauseName is a cause as people and headers write it: "max_lifetime".
func CauseName(c siroccov1.Cause) string {
	return strings.ToLower(strings.TrimPrefix(c.String(), "CAUSE_"))
}

func decode(key string, value []byte, revision uint64) (*siroccov1.Sandbox, error) {
	sb := &siroccov1.Sandbox{}
	if err := proto.Unmarshal(value, sb); err != nil {
		return nil, fmt.Errorf("decode record %s: %w", key, err)
	}
	sb.Revision = revision
	return sb, nil
}

func notFound(id string) error {
	if len(id) > 80 {
		id = id[:80] + "…"
	}
	return fault.New(fault.NotFound, "no sandbox %s", strings.ToValidUTF8(id, "\uFFFD"))
}

func busError(op string, err error) error {
	var api *jetstream.APIError
	if errors.Is(err, nats.ErrMaxPayload) {
		// Nothing that is tried again would make it shorter.
		return &fault.Fault{Code: fault.FailedPrecondition, Message: op + ": it would be longer than one message of the bus", Cause: err}
	}
	if errors.As(err, &api) && api.Code != 503 {
		return fmt.Errorf("%s: %w", op, err)
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", op, err)
	}
	return &fault.Fault{
		Code: fault.Unavailable, Message: op + ": the bus does not answer", RetryAfter: time.Second,
		Cause: fmt.Errorf("%s: %w", op, err),
	}
}
