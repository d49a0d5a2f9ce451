// Package sandboxid makes and checks sandbox ids.
//
// An id is "sb-" and the 26 lower-case characters of a UUIDv7 in base32hex
// (RFC 4648). So ids sort by the time they were made, have one length (gVisor
// matches container ids by prefix, so that two lengths would be a fault), and
// are legal as DNS label, NATS token and container id.
package sandboxid

import (
	"encoding/base32"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// Prefix starts every id.
const Prefix = "sb-"

// Len is the length of every id in bytes.
const Len = len(Prefix) + 26

var encoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// New returns a fresh id.
func New() string {
	// NewV7 fails only when the system has no randomness, without which
	// nothing here is safe.
	return fromUUID(uuid.Must(uuid.NewV7()))
}

// Valid says whether id has the form of a sandbox id.
func Valid(id string) bool {
	_, err := parse(id)
	return err == nil
}

// Time returns when the id was made, to the millisecond. It fails when id is
// not a sandbox id.
func Time(id string) (time.Time, error) {
	u, err := parse(id)
	if err != nil {
		return time.Time{}, err
	}
	var ms int64
	for _, b := range u[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms), nil
}

func fromUUID(u uuid.UUID) string {
	return Prefix + encoding.EncodeToString(u[:])
}

func parse(id string) (uuid.UUID, error) {
	var u uuid.UUID
	if len(id) != Len || id[:len(Prefix)] != Prefix {
		return u, fmt.Errorf("%q is not a sandbox id: want %q and 26 characters", id, Prefix)
	}
	raw, err := encoding.DecodeString(id[len(Prefix):])
	if err != nil {
		return u, fmt.Errorf("%q is not a sandbox id: %w", id, err)
	}
	copy(u[:], raw)
	// One id has one spelling: the two spare bits of the last character are
	// zero, and the version is 7.
	if fromUUID(u) != id || u.Version() != 7 {
		return u, fmt.Errorf("%q is not a sandbox id: not a UUIDv7", id)
	}
	return u, nil
}
