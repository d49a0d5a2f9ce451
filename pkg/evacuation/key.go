package evacuation

import (
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/sandboxid"
)

// keyPrefix begins the key of every command of an evacuation.
const keyPrefix = "ev-"

// idLength keeps a key within the 64 characters of a token.
const idLength = 12

// newID makes the id of an order, 60 random bits.
func newID() string { return strings.ToLower(rand.Text()[:idLength]) }

// Key is the idempotency key of the command that moves a sandbox, for the n-th time: the
// same move has the same key whoever asks for it, and asking twice does nothing more.
func Key(order, sandbox string, attempt int) string {
	return keyPrefix + order + "-" + sandbox + "-" + strconv.Itoa(attempt)
}

// ParseKey is the inverse of Key. The error says that it is the key of no evacuation.
func ParseKey(key string) (order, sandbox string, attempt int, err error) {
	rest, ours := strings.CutPrefix(key, keyPrefix)
	order, rest, cut := strings.Cut(rest, "-")
	last := strings.LastIndexByte(rest, '-')
	if !ours || !cut || last < 0 || len(order) != idLength || !sandboxid.Valid(rest[:last]) {
		return "", "", 0, fmt.Errorf("key %q: it is not that of an evacuation", key)
	}
	attempt, err = strconv.Atoi(rest[last+1:])
	if err != nil || attempt < 1 || Key(order, rest[:last], attempt) != key {
		return "", "", 0, fmt.Errorf("key %q: %q is no number of an attempt", key, rest[last+1:])
	}
	return order, rest[:last], attempt, nil
}
