// Package apikey keeps the keys with which tenants and operators open the api.
// A key is "sk_" and 256 random bits; the bucket holds only its SHA-256. (A
// slow hash protects secrets that people choose; these can't be guessed.)
package apikey

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// Role says what a key may do.
type Role string

// The roles.
const (
	// RoleTenant opens the sandboxes, tunnels and events of the tenant.
	RoleTenant Role = "tenant"
	// RoleOperator opens also nodes and the import and removal of images.
	RoleOperator Role = "operator"
)

// Prefix starts every key.
const Prefix = "sk_"

const secretBytes = 32

// idLen is how much of the hash names a key: enough to be unique among
// thousands, too little to be of use.
const idLen = 16

// Key is what is known of a key; never the key itself.
type Key struct {
	// ID names the key in lists and for Revoke: 16 hex digits.
	ID     string `json:"-"`
	Tenant string `json:"tenant"`
	Role   Role   `json:"role"`
	// Note is free text of whoever made it.
	Note    string    `json:"note,omitempty"`
	Created time.Time `json:"created"`
	// Origin is the region in which it was made, if that is another one.
	Origin string `json:"origin,omitempty"`
	// Revoked: it opens nothing any more. Only the copy of another region's key stays
	// as such.
	Revoked bool `json:"revoked,omitempty"`
}

// reserved tenants would share an inbox or a place in subjects with the
// platform's own users.
var reserved = []string{"sirocco", "unknown", "sys"}

// CheckTenant says whether a name can be a tenant's: a token of a subject that
// the platform does not use itself. The error is an InvalidArgument fault.
func CheckTenant(tenant string) error {
	if !subject.ValidToken(tenant) {
		return fault.Invalid("tenant", "want 1 to 64 of A-Z, a-z, 0-9, _ and -")
	}
	if slices.Contains(reserved, strings.ToLower(tenant)) {
		return fault.Invalid("tenant", "%q is reserved", tenant)
	}
	return nil
}

// Store reads and writes keys. It is safe for concurrent use.
type Store struct {
	js jetstream.JetStream
	kv jetstream.KeyValue
}

// Open binds to the bucket, which must exist (see package topology).
func Open(ctx context.Context, js jetstream.JetStream) (*Store, error) {
	kv, err := js.KeyValue(ctx, subject.BucketKeys)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", subject.BucketKeys, err)
	}
	return &Store{js: js, kv: kv}, nil
}

// Create makes a key. secret is shown this once only: it can't be had again.
// Errors: InvalidArgument, Unavailable.
func (s *Store) Create(ctx context.Context, tenant string, role Role, note string) (secret string, key Key, err error) {
	if err := CheckTenant(tenant); err != nil {
		return "", Key{}, err
	}
	if role != RoleTenant && role != RoleOperator {
		return "", Key{}, fault.Invalid("role", "%q is not a role: want %s or %s", role, RoleTenant, RoleOperator)
	}
	if len(note) > 256 {
		return "", Key{}, fault.Invalid("note", "it has %d bytes; at most 256 are allowed", len(note))
	}
	raw := make([]byte, secretBytes)
	_, _ = rand.Read(raw) // never fails, by its contract
	secret = Prefix + base64.RawURLEncoding.EncodeToString(raw)
	hash := hashOf(secret)
	key = Key{ID: hash[:idLen], Tenant: tenant, Role: role, Note: note, Created: time.Now().UTC().Truncate(time.Second)}
	value, err := json.Marshal(key)
	if err != nil {
		return "", Key{}, fmt.Errorf("encode key: %w", err)
	}
	if _, err := s.kv.Create(ctx, hash, value); err != nil {
		return "", Key{}, away("create key", err)
	}
	return secret, key, nil
}

// Revoke ends a key for good. Errors: NotFound, Unavailable.
func (s *Store) Revoke(ctx context.Context, id string) error {
	hashes, err := s.hashes(ctx)
	if err != nil {
		return err
	}
	for _, hash := range hashes {
		if len(id) == idLen && strings.HasPrefix(hash, id) {
			return s.revoke(ctx, hash)
		}
	}
	return fault.New(fault.NotFound, "no key %q", id)
}

// revoke removes a key, or marks the copy of one.
func (s *Store) revoke(ctx context.Context, hash string) error {
	key, err := s.read(ctx, hash)
	if err != nil {
		return err
	}
	if key.Origin == "" {
		err = s.kv.Purge(ctx, hash)
	} else {
		key.Revoked = true
		var value []byte
		if value, err = json.Marshal(key); err != nil {
			return fmt.Errorf("encode key: %w", err)
		}
		_, err = s.kv.Put(ctx, hash, value)
	}
	if err != nil {
		return away("revoke key", err)
	}
	return nil
}

// List returns the keys of a tenant, or of all tenants for "", oldest first.
func (s *Store) List(ctx context.Context, tenant string) ([]Key, error) {
	hashes, err := s.hashes(ctx)
	if err != nil {
		return nil, err
	}
	var out []Key
	for _, hash := range hashes {
		key, err := s.read(ctx, hash)
		if fault.CodeOf(err) == fault.NotFound {
			continue // revoked meanwhile
		}
		if err != nil {
			return nil, err
		}
		if tenant == "" || key.Tenant == tenant {
			out = append(out, key)
		}
	}
	slices.SortFunc(out, func(a, b Key) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out, nil
}

// Verify returns what a secret opens. Errors: Unauthenticated, Unavailable.
func (s *Store) Verify(ctx context.Context, secret string) (Key, error) {
	hash, ok := parse(secret)
	if !ok {
		return Key{}, unknown()
	}
	key, err := s.read(ctx, hash)
	if fault.CodeOf(err) == fault.NotFound {
		return Key{}, unknown()
	}
	return key, err
}

func (s *Store) read(ctx context.Context, hash string) (Key, error) {
	entry, err := s.kv.Get(ctx, hash)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Key{}, fault.New(fault.NotFound, "no such key")
	}
	if err != nil {
		return Key{}, away("read key", err)
	}
	key, err := decode(hash, entry.Value())
	if err == nil && key.Revoked {
		return Key{}, fault.New(fault.NotFound, "no such key")
	}
	return key, err
}

func (s *Store) hashes(ctx context.Context) ([]string, error) {
	list, err := s.kv.ListKeys(ctx)
	if err != nil {
		return nil, away("list keys", err)
	}
	var out []string
	for hash := range list.Keys() {
		out = append(out, hash)
	}
	return out, nil
}

// parse returns the hash of what looks like a key.
func parse(secret string) (hash string, ok bool) {
	rest, ok := strings.CutPrefix(secret, Prefix)
	if !ok {
		return "", false
	}
	raw, err := base64.RawURLEncoding.DecodeString(rest)
	if err != nil || len(raw) != secretBytes {
		return "", false
	}
	return hashOf(secret), true
}

func hashOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func decode(hash string, value []byte) (Key, error) {
	var key Key
	if err := json.Unmarshal(value, &key); err != nil {
		return Key{}, fmt.Errorf("decode key: %w", err)
	}
	if len(hash) < idLen || CheckTenant(key.Tenant) != nil {
		return Key{}, errors.New("decode key: not a key of this bucket")
	}
	key.ID = hash[:idLen]
	return key, nil
}

func unknown() error {
	return fault.New(fault.Unauthenticated, "the API key is not known")
}

func away(op string, err error) error {
	return &fault.Fault{
		Code: fault.Unavailable, Message: op + ": the bus does not answer", RetryAfter: time.Second,
		Cause: fmt.Errorf("%s: %w", op, err),
	}
}
