package bench

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func at(ms int) time.Time { return time.UnixMilli(int64(ms)) }

func took(ms int) time.Duration { return time.Duration(ms) * time.Millisecond }

func TestStagesFormATree(t *testing.T) {
	trace := func(warm bool) []span {
		return []span{
			// The parts come before what they are a part of, as they end first.
			{id: "4", parent: "3", name: "agent.boot", began: at(20), took: took(10)},
			{id: "5", parent: "3", name: "agent.create", began: at(10), took: took(10)},
			{id: "3", parent: "2", name: "agent.start", began: at(5), took: took(30), warm: warm},
			{id: "2", parent: "1", name: "api", began: at(1), took: took(38)},
			{id: "9", parent: "8", name: "of a parent that never came", began: at(1), took: took(1)},
			{id: "1", name: "client SandboxService/Create", began: at(0), took: took(40)},
		}
	}
	got := stagesOf(map[string][]span{"a": trace(false), "b": trace(true), "c": trace(false), "d": {{id: "1", name: "client SandboxService/List"}}})
	var lines []string
	for _, s := range got {
		lines = append(lines, fmt.Sprintf("%s|%s%s %g/%g %d", s.Of, strings.Repeat(" ", s.Depth), s.Name, s.P50, s.Self, s.N))
	}
	want := []string{
		"warm create|client SandboxService/Create 40/2 1", "warm create| api 38/8 1", "warm create|  agent.start 30/10 1",
		"warm create|   agent.create 10/10 1", "warm create|   agent.boot 10/10 1",
		"cold create|client SandboxService/Create 40/2 2", "cold create| api 38/8 2", "cold create|  agent.start 30/10 2",
		"cold create|   agent.create 10/10 2", "cold create|   agent.boot 10/10 2",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// However parts overlap or outlast: what they cover is the milliseconds in which
// one of them is.
func TestCovered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		whole := span{began: at(10), took: took(rapid.IntRange(0, 30).Draw(t, "whole"))}
		var parts []span
		want := map[int]bool{}
		for range rapid.IntRange(0, 6).Draw(t, "parts") {
			from, length := rapid.IntRange(0, 50).Draw(t, "from"), rapid.IntRange(0, 30).Draw(t, "length")
			parts = append(parts, span{began: at(from), took: took(length)})
			for ms := from; ms < from+length; ms++ {
				if ms >= 10 && ms < 10+int(whole.took/time.Millisecond) {
					want[ms] = true
				}
			}
		}
		if got := covered(whole, parts); got != took(len(want)) {
			t.Fatalf("got %v, want %d ms", got, len(want))
		}
	})
}
