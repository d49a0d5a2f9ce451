package api

import (
	"fmt"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/quota"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"pgregory.net/rapid"
)

// one is a sandbox that requests no memory, as those of recordOf.
var one = quota.Usage{Live: 1}

func atMost(live int) func(string) quota.Limits {
	return func(string) quota.Limits { return quota.Limits{Live: live} }
}

func recordOf(key string, state siroccov1.State) *siroccov1.Sandbox {
	return &siroccov1.Sandbox{Tenant: "acme", IdempotencyKey: key, State: state}
}

// A seat lasts from take until the sandbox has ended, whatever the view shows.
func TestSeats(t *testing.T) {
	s, now := newSeats(atMost(2)), time.Now()
	full := func(want bool) {
		t.Helper()
		err := s.take("acme", "probe", one, now)
		if err == nil {
			s.giveBack("acme", "probe")
		}
		if (fault.CodeOf(err) == fault.Quota) != want {
			t.Errorf("%v, full should be %t", err, want)
		}
	}
	take := func(key string) {
		t.Helper()
		if err := s.take("acme", key, one, now); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	take("a")
	full(false)
	take("b")
	full(true)
	take("a") // a resend of what is under way
	if err := s.take("other", "a", one, now); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	// One of two calls with a key fails, the other made the sandbox.
	s.giveBack("acme", "a")
	full(true)
	a := recordOf("a", siroccov1.State_STATE_ACCEPTED)
	s.change(nil, a)
	full(true)
	take("a") // a resend of what there is
	full(true)
	s.giveBack("acme", "b")
	full(false)
	ended := recordOf("a", siroccov1.State_STATE_STOPPED)
	s.change(a, ended)
	take("b")
	take("a")
	full(false)
	s.change(ended, nil)
	take("a") // forgotten: a new one
	full(true)
	now = now.Add(seatTime)
	full(false)
	if err := newSeats(atMost(0)).take("acme", "a", one, now); err != nil {
		t.Errorf("without a limit: %v", err)
	}
}

// However takes, failures and what the view shows follow each other, a tenant
// never has more than it may; and when nothing is left, nothing is kept.
func TestSeatsNeverOvershoot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 4).Draw(t, "most")
		s, now := newSeats(atMost(most)), time.Now()
		written := map[string]*siroccov1.Sandbox{} // the truth
		shown := map[string]*siroccov1.Sandbox{}   // the view, behind it
		taken := map[string]bool{}
		show := func(key string) {
			s.change(shown[key], written[key])
			if shown[key] = written[key]; shown[key] == nil {
				delete(shown, key)
			}
		}
		key := func(t *rapid.T) string { return fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "key")) }
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				k := key(t)
				if !taken[k] && written[k] == nil && s.take("acme", k, one, now) == nil {
					taken[k] = true
				}
			},
			"write": func(t *rapid.T) {
				if k := key(t); taken[k] {
					written[k] = recordOf(k, siroccov1.State_STATE_ACCEPTED)
					delete(taken, k)
				}
			},
			"fail": func(t *rapid.T) {
				if k := key(t); taken[k] {
					s.giveBack("acme", k)
					delete(taken, k)
				}
			},
			"end": func(t *rapid.T) {
				if k := key(t); written[k] != nil {
					written[k] = recordOf(k, siroccov1.State_STATE_STOPPED)
				}
			},
			"show": func(t *rapid.T) {
				if k := key(t); written[k] != nil || shown[k] != nil {
					show(k)
				}
			},
			"": func(t *rapid.T) {
				live := len(taken)
				for _, sb := range written {
					if sb.GetState() == siroccov1.State_STATE_ACCEPTED {
						live++
					}
				}
				if live > most {
					t.Fatalf("%d live of %d", live, most)
				}
			},
		})
		for k := range taken {
			s.giveBack("acme", k)
		}
		for k := range written {
			show(k)
			written[k] = nil
			show(k)
		}
		if len(s.tenants) > 1 || s.tenants["acme"] != nil && (s.tenants["acme"].live != (quota.Usage{}) || s.tenants["acme"].taken != (quota.Usage{}) || len(s.tenants["acme"].coming) != 0 || len(s.tenants["acme"].shown) != 0) {
			t.Fatalf("left: %+v", s.tenants["acme"])
		}
	})
}
