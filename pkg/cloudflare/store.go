package cloudflare

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/cloudflare/plan"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// saved is the entry in the bucket.
type saved struct {
	plan.State
	// Holder wrote it.
	Holder string `json:"holder"`
	// Asked is when Want was wanted.
	Asked time.Time `json:"asked,omitzero"`
	// Sent is when Cloudflare last confirmed a write.
	Sent time.Time `json:"sent,omitzero"`
	// Untold is what can't be sent as it was wanted.
	Untold []string `json:"untold,omitempty"`
	// Pools are the pools of the regions, by region, for those who show it.
	Pools map[string]string `json:"pools,omitempty"`
}

// errOvertaken is what a publisher gets that is not the one any more.
var errOvertaken = errors.New("another publisher has taken over")

// saveTimeout bounds each access to the bucket.
const saveTimeout = 2 * time.Second

// store is the entry as one publisher sees it: whoever writes it next, first.
type store struct {
	kv       jetstream.KeyValue
	revision uint64
}

func openStore(ctx context.Context, js jetstream.JetStream) (*store, error) {
	kv, err := js.KeyValue(ctx, subject.BucketCloudflare)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", subject.BucketCloudflare, err)
	}
	return &store{kv: kv}, nil
}

// load reads the entry; there may be none yet.
func (s *store) load(ctx context.Context) (saved, error) {
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	var st saved
	entry, err := s.kv.Get(ctx, subject.KeyCloudflare)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		s.revision = 0
		return st, nil
	}
	if err != nil {
		return st, fmt.Errorf("read what Cloudflare holds: %w", err)
	}
	s.revision = entry.Revision()
	if err := json.Unmarshal(entry.Value(), &st); err != nil {
		return saved{}, fmt.Errorf("read what Cloudflare holds: %w", err)
	}
	return st, nil
}

// save writes the entry unless somebody else has. It is errOvertaken then, and
// also after a save whose answer was lost: load tells.
func (s *store) save(ctx context.Context, st saved) error {
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	raw, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("save what Cloudflare holds: %w", err)
	}
	var revision uint64
	if s.revision == 0 {
		revision, err = s.kv.Create(ctx, subject.KeyCloudflare, raw)
	} else {
		revision, err = s.kv.Update(ctx, subject.KeyCloudflare, raw, s.revision)
	}
	if bus.IsConflict(err) {
		return errOvertaken
	}
	if err != nil {
		return fmt.Errorf("save what Cloudflare holds: %w", err)
	}
	s.revision = revision
	return nil
}
