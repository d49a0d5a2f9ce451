package cloudflare

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestLimit(t *testing.T) {
	for header, want := range map[string]struct {
		remaining int
		reset     time.Duration
		ok        bool
	}{
		`"default";r=50;t=30`:                  {50, 30 * time.Second, true},
		`"burst";r=90;t=60, "default";r=1;t=2`: {1, 2 * time.Second, true},
		`"default"; r=7; t=300;pk=:dXNlcg==:`:  {7, 5 * time.Minute, true},
		`"default";r=0;t=0`:                    {0, 0, true},
		``:                                     {},
		`"default"`:                            {},
		`"default";r=50`:                       {},
		`"default";r=-1;t=2`:                   {},
		`"default";r=x;t=y`:                    {},
		`"default";r=99999999999999999999999999;t=1`: {},
	} {
		a := answer{header: http.Header{"Ratelimit": {header}}}
		remaining, reset, ok := a.limit()
		if remaining != want.remaining || reset != want.reset || ok != want.ok {
			t.Errorf("%q: %d, %v, %v", header, remaining, reset, ok)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"120": 2 * time.Minute, "1.5": 1500 * time.Millisecond, "": 0, "-5": 0, "soon": 0, "NaN": 0, "1e300": 0,
		"Sun, 01 Mar 2026 12:00:30 GMT": 30 * time.Second, "Sun, 01 Mar 2026 11:00:30 GMT": 0,
	} {
		a := answer{header: http.Header{"Retry-After": {header}}}
		if got := a.retryAfter(now); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}

// TestFailureKinds: what waiting mends, what it doesn't, and after what nobody
// knows.
func TestFailureKinds(t *testing.T) {
	for status, want := range map[int]string{
		0: "failed", 200: "failed", 301: "refused", 400: "refused", 401: "refused", 403: "refused", 404: "refused", 405: "refused", 422: "refused",
		408: "limited", 409: "limited", 425: "limited", 429: "limited", 500: "failed", 502: "failed", 520: "failed",
	} {
		a := answer{status: status, said: "word (1)"}
		f := a.failure("weights", errors.New("cause"), time.Now())
		if f.Kind() != want {
			t.Errorf("%d is %s, want %s", status, f.Kind(), want)
		}
		if word := map[bool]string{true: "word (1)", false: "cause"}[status >= 300]; !strings.HasPrefix(f.Text, "weights: ") || !strings.Contains(f.Text, word) {
			t.Errorf("%d: %q", status, f.Text)
		}
	}
}

// FuzzHeaders: headers are whatever a proxy on the way makes of them.
func FuzzHeaders(f *testing.F) {
	f.Add(`"default";r=50;t=30`, "30")
	f.Fuzz(func(t *testing.T, limit, after string) {
		a := answer{header: http.Header{"Ratelimit": {limit}, "Retry-After": {after}}}
		remaining, reset, ok := a.limit()
		if remaining < 0 || reset < 0 || !ok && remaining != 0 {
			t.Errorf("%d, %v, %v", remaining, reset, ok)
		}
		if d := a.retryAfter(time.Now()); d < 0 {
			t.Errorf("%v", d)
		}
	})
}
