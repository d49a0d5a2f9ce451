package e2e

import (
	"context"
	"strings"
	"sync"
	"testing"
)

// otherKey makes the key of a second tenant, once.
var otherKey = sync.OnceValues(func() (string, string) {
	out, errs, code := up.CLI(context.Background(), nil, "key", "create", "--tenant", "other", "--data", up.Data())
	if code != 0 {
		return "", errs
	}
	return strings.TrimSpace(out), ""
})

// otherTenant returns a key of the tenant "other".
func otherTenant(t testing.TB) string {
	t.Helper()
	key, why := otherKey()
	if why != "" {
		t.Fatal(why)
	}
	return key
}
