package simulation

import (
	"os"
	"reflect"
	"strconv"
	"testing"
)

const (
	// seeds is how many histories every run of the tests lives through.
	seeds = 1000
	// shown is how many steps of a failed history are shown.
	shown = 60
)

// number reads a number from the environment; 0 if it is not there.
func number(t *testing.T, name string) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestHistoriesKeepTheInvariants lives through SIROCCO_SEEDS histories, or through that
// of SIROCCO_SEED alone and shows it.
func TestHistoriesKeepTheInvariants(t *testing.T) {
	if os.Getenv("SIROCCO_SEED") != "" {
		r := Run(number(t, "SIROCCO_SEED"), Broken{})
		t.Logf("seed %d\n%s", r.Seed, r.History(0))
		if r.Violation != "" {
			t.Errorf("seed %d: %s", r.Seed, r.Violation)
		}
		return
	}
	seen := map[string]int{}
	for seed := range max(number(t, "SIROCCO_SEEDS"), seeds) {
		r := Run(seed, Broken{})
		if r.Violation != "" {
			t.Errorf("seed %d, to be replayed by: make simulate SEED=%d\n%s\nthe last %d steps:\n%s", seed, seed, r.Violation, shown, r.History(shown))
		}
		for what, n := range r.Seen {
			seen[what] += n
		}
	}
	for _, what := range sorted(seen) {
		t.Logf("%7d × %s", seen[what], what)
	}
	// A world in which these don't come about shows nothing.
	for _, what := range []string{
		"source, idle: send", "source, idle: call off", "source, sending: commit", "source, sending: resume",
		"source, returned: resume", "source, returned: forget", "source, committing: commit", "source, committing: call off",
		"source, committing: forget", "source, committing: leave", "target: release, told", "target: release, not told",
		"target: discard, not told", "target: unknown, not told", "target: unknown, nobody answers", "command: later",
		"command: elsewhere", "ended: user", "ended: max_lifetime", "ended: no_capacity", "ended: node_lost", "memory checked",
	} {
		if seen[what] == 0 {
			t.Errorf("no history has seen %q", what)
		}
	}
}

func TestAHistoryIsTheSameTwice(t *testing.T) {
	different := map[string]bool{}
	for seed := range uint64(30) {
		first, again := Run(seed, Broken{}), Run(seed, Broken{})
		if first.History(0) != again.History(0) {
			t.Fatalf("seed %d gives two histories:\n%s\nand\n%s", seed, first.History(0), again.History(0))
		}
		different[first.History(0)] = true
	}
	if len(different) != 30 {
		t.Errorf("30 seeds give %d histories", len(different))
	}
}

// TestWhatIsBrokenIsFound breaks one rule at a time; the simulation must find out
// within as many seeds as every run of the tests has.
func TestWhatIsBrokenIsFound(t *testing.T) {
	rules := reflect.TypeFor[Broken]()
	for i := range rules.NumField() {
		t.Run(rules.Field(i).Name, func(t *testing.T) {
			var broken Broken
			reflect.ValueOf(&broken).Elem().Field(i).SetBool(true)
			for seed := range uint64(seeds) {
				if r := Run(seed, broken); r.Violation != "" {
					t.Logf("after %d seeds: %s", seed+1, r.Violation)
					return
				}
			}
			t.Errorf("not found within %d seeds", seeds)
		})
	}
}
