package cursor

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A cursor that is given back says what it said.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Cursor{}
		for _, region := range rapid.SliceOfDistinct(rapid.StringMatching(`[A-Za-z0-9_-]{1,8}`), rapid.ID).Draw(t, "regions") {
			p := Position{Sequence: rapid.Uint64().Draw(t, "sequence")}
			if rapid.Bool().Draw(t, "by time") {
				p = Position{Since: time.UnixMilli(rapid.Int64Range(0, 1<<47).Draw(t, "ms"))}
			}
			c[region] = p
		}
		back, err := Parse(c.String())
		if len(c) > maxRegions {
			if err == nil {
				t.Errorf("%d regions were read", len(c))
			}
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", c, err)
		}
		if len(back) != len(c) {
			t.Errorf("%s became %s", c, back)
		}
		for region, p := range c {
			if got := back[region]; got.Sequence != p.Sequence || !got.Since.Equal(p.Since) {
				t.Errorf("%s: %v became %v", region, p, got)
			}
		}
	})
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"start": "start", "eu:7": "eu:7", "us:15,eu:7": "eu:7,us:15", "us:@1763836390123": "us:@1763836390123", "eu:0": "eu:0",
	} {
		if got, err := Parse(text); err != nil || got.String() != want {
			t.Errorf("%q: %v, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"", "7", "eu", "eu:", "eu:-1", "eu:7,", "eu:7,eu:8", "e u:7", "eu:@", "eu:@-1", "eu:@999999999999999999", "eu:18446744073709551616", "eu:7\n"} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"start", "eu:7,us:@1763836390123", "eu:7,eu:8"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(c.String())
		if err != nil || again.String() != c.String() {
			t.Errorf("%q: %s, then %s (%v)", text, c, again, err)
		}
	})
}
