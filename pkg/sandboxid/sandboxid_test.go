package sandboxid

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

func TestNewIsValidAndTimed(t *testing.T) {
	before := time.Now().Add(-time.Millisecond)
	id := New()
	if !Valid(id) || len(id) != Len {
		t.Fatalf("New() = %q, not valid", id)
	}
	at, err := Time(id)
	if err != nil || at.Before(before) || at.After(time.Now().Add(time.Millisecond)) {
		t.Fatalf("Time(%q) = %v, %v", id, at, err)
	}
}

func TestIDsSortByTime(t *testing.T) {
	last := ""
	for range 1000 {
		id := New()
		if id <= last {
			t.Fatalf("%q after %q", id, last)
		}
		last = id
	}
}

func TestInvalid(t *testing.T) {
	good := New()
	for _, id := range []string{"", "sb-", good[3:], good + "0", strings.ToUpper(good), "sb-" + strings.Repeat("0", 26), good[:28] + "1"} {
		if Valid(id) {
			t.Errorf("Valid(%q) = true", id)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var u uuid.UUID
		copy(u[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "raw"))
		u[6] = u[6]&0x0f | 0x70
		got, err := parse(fromUUID(u))
		if err != nil || got != u {
			t.Fatalf("parse(fromUUID(%v)) = %v, %v", u, got, err)
		}
	})
}
