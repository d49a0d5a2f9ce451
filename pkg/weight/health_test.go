package weight

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// perfect is a region of which everything is known and good.
func perfect() Signals {
	good := Evidence{Good: 100, Cost: 100 * time.Millisecond, Baseline: 100 * time.Millisecond, Timeout: 30 * time.Second}
	return Signals{
		Answers: Answers{Answered: 10, Asked: 10}, Creates: good, Probes: good,
		Headroom: Headroom{Free: 50, Capacity: 100, Warm: 8, WarmWanted: 8},
		Bus:      Bus{Seen: true, Lag: time.Millisecond},
	}
}

func TestJudge(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Signals)
		signal Signal
		cost   float64
		text   string
	}{
		"agents":       {func(s *Signals) { s.Answers.Answered = 7 }, SignalAnswers, 0.3, "7 of 10 agents answered"},
		"full":         {func(s *Signals) { s.Headroom.Free = 0 }, SignalHeadroom, 0.6, "0% free, pools 100% full"},
		"half scarce":  {func(s *Signals) { s.Headroom.Free = 5 }, SignalHeadroom, 0.3, "5% free"},
		"empty pools":  {func(s *Signals) { s.Headroom.Warm = 0 }, SignalHeadroom, 0.04, "pools 0% full"},
		"no pools":     {func(s *Signals) { s.Headroom.Warm, s.Headroom.WarmWanted = 0, 0 }, SignalHeadroom, 0, "50% free"},
		"lag":          {func(s *Signals) { s.Bus.Lag = 10 * time.Second }, SignalBus, 0.8, "10s behind"},
		"some lag":     {func(s *Signals) { s.Bus.Lag = 400 * time.Millisecond }, SignalBus, 0, "400ms behind"},
		"skewed clock": {func(s *Signals) { s.Bus.Lag = math.MinInt64 }, SignalBus, 0, "0s behind"},
		"probes fail":  {func(s *Signals) { s.Probes = Evidence{Bad: 95, Cost: 5e9, Baseline: 2e7, Timeout: 5e9} }, SignalProbes, 0.95, "100% failed; mean cost 5s, usual 20ms"},
		"slow creates": {func(s *Signals) { s.Creates.Cost = 1500 * time.Millisecond }, SignalCreates, math.Log(10) / math.Log(200) * 100 / 105, "0% failed; mean cost 1.5s, usual 100ms"},
	} {
		s := perfect()
		c.change(&s)
		h := Judge(s)
		if !h.Known || math.Abs(h.Score-(1-c.cost)) > 1e-12 {
			t.Errorf("%s: score %g, want %g", name, h.Score, 1-c.cost)
		}
		for _, p := range h.Parts {
			want := 0.0
			if p.Signal == c.signal {
				want = -c.cost
				if !strings.Contains(p.Text, c.text) {
					t.Errorf("%s: %q, want %q", name, p.Text, c.text)
				}
			}
			if !p.Seen || math.Abs(p.Contribution-want) > 1e-12 {
				t.Errorf("%s: %+v, want a contribution of %g", name, p, want)
			}
		}
	}
}

// What is missing counts neither as bad nor as good: taking a signal away gives
// back just what it took.
func TestMissingSignals(t *testing.T) {
	if h := Judge(Signals{}); h.Known || h.Score != 1 || len(h.Parts) != 5 {
		t.Errorf("nothing is known: %+v", h)
	}
	remove := []func(*Signals){
		func(s *Signals) { s.Answers = Answers{} },
		func(s *Signals) { s.Creates = Evidence{} },
		func(s *Signals) { s.Headroom = Headroom{} },
		func(s *Signals) { s.Bus = Bus{} },
		func(s *Signals) { s.Probes = Evidence{} },
	}
	for i := range remove {
		bad := perfect()
		bad.Answers.Answered = 9
		bad.Headroom.Free = 8
		bad.Bus.Lag = 2 * time.Second
		bad.Creates.Cost = 300 * time.Millisecond
		bad.Probes.Cost = 300 * time.Millisecond
		with := Judge(bad)
		remove[i](&bad)
		without := Judge(bad)
		if p := without.Parts[i]; p.Seen || p.Contribution != 0 || p.Text == "" {
			t.Errorf("%+v", p)
		}
		if d := without.Score - with.Score + with.Parts[i].Contribution; math.Abs(d) > 1e-12 || with.Parts[i].Contribution == 0 {
			t.Errorf("%s: with %g, without %g, it took %g", with.Parts[i].Signal, with.Score, without.Score, with.Parts[i].Contribution)
		}
	}
}

func drawEvidence(t *rapid.T, name string) Evidence {
	return Evidence{
		Good: rapid.Float64().Draw(t, name+" good"), Bad: rapid.Float64().Draw(t, name+" bad"),
		Cost:     time.Duration(rapid.Int64().Draw(t, name+" cost")),
		Baseline: time.Duration(rapid.Int64().Draw(t, name+" baseline")),
		Timeout:  time.Duration(rapid.Int64().Draw(t, name+" timeout")),
	}
}

func drawSignals(t *rapid.T) Signals {
	number := rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{0, 1, math.NaN(), math.Inf(1), math.Inf(-1)}))
	return Signals{
		Answers: Answers{rapid.Int().Draw(t, "answered"), rapid.Int().Draw(t, "asked")},
		Creates: drawEvidence(t, "creates"), Probes: drawEvidence(t, "probes"),
		Headroom: Headroom{number.Draw(t, "free"), number.Draw(t, "capacity"), number.Draw(t, "warm"), number.Draw(t, "wanted")},
		Bus:      Bus{rapid.Bool().Draw(t, "bus"), time.Duration(rapid.Int64().Draw(t, "lag"))},
	}
}

// Whatever the signals: a score is in 0..1 and what its parts say; what gets
// worse never makes it better.
func TestJudgeProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSignals(t)
		h := Judge(s)
		sum, seen := 1.0, false
		for _, p := range h.Parts {
			if !(p.Contribution <= 0 && p.Contribution >= -1) || !p.Seen && p.Contribution != 0 || p.Text == "" {
				t.Fatalf("%+v", p)
			}
			sum += p.Contribution
			seen = seen || p.Seen
		}
		if h.Score != min(max(sum, 0), 1) || h.Known != seen {
			t.Fatalf("%+v: the parts say %g, %v", h, sum, seen)
		}
		worse := s
		switch rapid.IntRange(0, 4).Draw(t, "worse") {
		case 0:
			worse.Answers.Answered -= min(max(worse.Answers.Answered, 0), rapid.IntRange(0, 9).Draw(t, "silent"))
		case 1:
			worse.Creates.Cost += time.Duration(rapid.Int64Range(0, math.MaxInt64-max(int64(s.Creates.Cost), 0)).Draw(t, "slower"))
		case 2:
			worse.Headroom.Free *= rapid.Float64Range(0, 1).Draw(t, "fuller")
			if s.Headroom.Free < 0 || math.IsInf(s.Headroom.Free, 1) {
				worse.Headroom.Free = s.Headroom.Free
			}
		case 3:
			worse.Bus.Lag += time.Duration(rapid.Int64Range(0, math.MaxInt64-max(int64(s.Bus.Lag), 0)).Draw(t, "later"))
		case 4:
			worse.Probes.Cost += time.Duration(rapid.Int64Range(0, math.MaxInt64-max(int64(s.Probes.Cost), 0)).Draw(t, "slower"))
		}
		if w := Judge(worse); w.Score > h.Score {
			t.Fatalf("%+v: %g; worse, %+v: %g", s, h.Score, worse, w.Score)
		}
	})
}
