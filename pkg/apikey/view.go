package apikey

import (
	"context"

	"github.com/sirocco-run/sirocco/pkg/mirror"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// View verifies keys from a copy in memory: without a round trip, and with the
// bus away too. A key that was revoked stops to work within milliseconds; one
// that was just made works at once, since what the copy does not hold is asked
// of the bucket.
type View struct {
	store *Store
	keys  *mirror.Mirror[Key]
}

// NewView makes an empty view; Run fills it.
func NewView(store *Store) *View {
	return &View{store: store, keys: mirror.New(decodeOpen)}
}

// decodeOpen is decode for keys that open something.
func decodeOpen(hash string, value []byte) (Key, error) {
	key, err := decode(hash, value)
	if err == nil && key.Revoked {
		err = unknown()
	}
	return key, err
}

// Ready is closed once the view has caught up for the first time.
func (v *View) Ready() <-chan struct{} { return v.keys.Ready() }

// Run follows the keys until ctx ends, and then returns nil.
func (v *View) Run(ctx context.Context) error { return v.keys.Run(ctx, v.store.js, subject.BucketKeys) }

// Verify returns what a secret opens. Errors: Unauthenticated, Unavailable.
func (v *View) Verify(ctx context.Context, secret string) (Key, error) {
	hash, ok := parse(secret)
	if !ok {
		return Key{}, unknown()
	}
	if key, ok := v.keys.Get(hash); ok {
		return key, nil
	}
	return v.store.Verify(ctx, secret)
}
