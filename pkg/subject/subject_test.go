package subject

import (
	"testing"

	"pgregory.net/rapid"
)

func TestRoundTrips(t *testing.T) {
	tok := rapid.StringMatching(`[A-Za-z0-9_-]{1,64}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b, c, d := tok.Draw(t, "a"), tok.Draw(t, "b"), tok.Draw(t, "c"), tok.Draw(t, "d")
		check := func(name string, err error, got, want []string) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for i := range want {
				if got[i] != want[i] {
					t.Fatalf("%s: got %v, want %v", name, got, want)
				}
			}
		}
		x, y, z, err := ParseAPI(API(a, b, c))
		check("API", err, []string{x, y, z}, []string{a, b, c})
		x, y, z, err = ParseCommand(Command(a, b, c))
		check("Command", err, []string{x, y, z}, []string{a, b, c})
		x, y, z, err = ParseEvent(Event(a, b))
		check("Event", err, []string{x, y, z}, []string{a, NounSandbox, b})
		x, y, err = ParseTraffic(Traffic(a, b))
		check("Traffic", err, []string{x, y}, []string{a, b})
		x, y, err = ParseNode(Node(a, b))
		check("Node", err, []string{x, y}, []string{a, b})
		x, y, z, w, err := ParseDeadLetter(DeadLetter(a, b, c, d))
		check("DeadLetter", err, []string{x, y, z, w}, []string{a, b, c, d})
		x, y, err = ParseRecordKey(RecordKey(a, b))
		check("RecordKey", err, []string{x, y}, []string{a, b})
		x, y, err = ParseNodeKey(NodeKey(a, b))
		check("NodeKey", err, []string{x, y}, []string{a, b})
		x, y, err = ParsePoolKey(PoolKey(a, b))
		check("PoolKey", err, []string{x, y}, []string{a, b})
		x, y, err = ParseQuotaKey(QuotaKey(a, b))
		check("QuotaKey", err, []string{x, y}, []string{a, b})
		x, y, err = ParseEvacuationKey(EvacuationKey(a, b))
		check("EvacuationKey", err, []string{x, y}, []string{a, b})
		x, y, err = ParseEvacuationKey(EvacuationKey(a, ""))
		check("EvacuationKey", err, []string{x, y}, []string{a, ""})
		if got := Tenant(Command(a, b, c)); got != a {
			t.Fatalf("Tenant of a command of %q: %q", a, got)
		}
	})
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{"", "sirocco", "sirocco.cmd.a.sandbox.create", "sirocco.cmd.a.node.create.k", "sirocco.cmd.a.sandbox.create.k.x", "other.cmd.a.sandbox.create.k", "sirocco.cmd..sandbox.create.k", "sirocco.cmd.*.sandbox.create.k"} {
		if _, _, _, err := ParseCommand(s); err == nil {
			t.Errorf("ParseCommand(%q) gave no error", s)
		}
	}
}

func FuzzParseCommand(f *testing.F) {
	f.Add("sirocco.cmd.default.sandbox.create.key-1")
	f.Fuzz(func(t *testing.T, s string) {
		tenant, verb, key, err := ParseCommand(s)
		if err == nil && Command(tenant, verb, key) != s {
			t.Fatalf("ParseCommand(%q) is not the inverse of Command", s)
		}
	})
}
