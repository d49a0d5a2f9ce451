package transfer

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// ahead sends one file ahead, and then the files of another folder.
func ahead(t testing.TB, before []byte, after map[string][]byte) (Sent, Received) {
	t.Helper()
	early, from, dir := folder(t, map[string][]byte{"pages.img": before}), folder(t, after), t.TempDir()
	sc, tc := pipe(t)
	var sent Sent
	var got Received
	serr, terr := both(t, func() (err error) {
		s := NewSource(sc, Options{})
		if _, err := s.Ahead(t.Context(), filepath.Join(early, "pages.img")); err != nil {
			return err
		}
		if err := os.RemoveAll(early); err != nil {
			return err
		}
		sent, err = s.Files(t.Context(), from)
		return err
	}, func() (err error) { got, err = NewTarget(tc, Options{}).Files(t.Context(), dir); return err })
	if serr != nil || terr != nil {
		t.Fatalf("source: %v; target: %v", serr, terr)
	}
	wantFiles(t, dir, after)
	if want := (Received{Files: sent.Files, Bytes: sent.Bytes, Content: sent.Content, Wire: sent.Wire, Known: sent.Known}); got != want {
		t.Errorf("sent %+v, received %+v", sent, got)
	}
	return sent, got
}

// TestSentAhead: of what was sent ahead, nothing is sent again, wherever it is now.
func TestSentAhead(t *testing.T) {
	before := content(8, 5<<20, 0.2, 0.3)
	after := slices.Concat(before[3<<20:], content(9, 3*pageSize, 0, 0), before[:3<<20], []byte("the end"))
	sent, _ := ahead(t, before, map[string][]byte{"pages.img": after, "checkpoint.img": []byte("state")})
	if sent.Wire > 100<<10 || sent.Known < 3<<20 {
		t.Errorf("of a file that was known but for three pages: %+v", sent)
	}
}

// TestSentAheadIsNeverWrong: whatever has become of the pages since, all are what they
// are now.
func TestSentAheadIsNeverWrong(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		// Few pages, many of them alike, whole parts among them.
		kinds := rapid.SliceOfN(rapid.IntRange(0, 40), 0, 3*partPages)
		file := func(name string) []byte {
			var b []byte
			for _, kind := range kinds.Draw(r, name) {
				b = append(b, bytes.Repeat([]byte{byte(kind)}, pageSize)...)
			}
			return append(b, make([]byte, rapid.IntRange(0, 100).Draw(r, name+" tail"))...)
		}
		ahead(t, file("before"), map[string][]byte{"pages.img": file("after"), "other": file("other")})
	})
}

// TestHostileAhead: what a source says about pages that it has sent is not believed.
func TestHostileAhead(t *testing.T) {
	early := func(name string) []byte {
		b := file(name)
		m, err := unpack(b[frameHead:])
		if err != nil {
			t.Fatal(err)
		}
		m.GetFile().Ahead = true
		if b, err = pack(m); err != nil {
			t.Fatal(err)
		}
		return b
	}
	sent := bytes.Join([][]byte{early("a"), first, sumOf("a", pageSize, first)}, nil)
	pages := func(index uint32, runs ...run) []byte { return frame(frameKnown, known(index, runs)) }
	one := run{page: 0, count: 1}
	for name, frames := range map[string][][]byte{
		"nothing was sent ahead":        {file("a"), pages(0, one)},
		"another file with it":          {sent, file("b")},
		"ahead twice":                   {sent, end, early("b")},
		"ahead behind a file":           {file("a"), sumOf("a", 0), early("b")},
		"ahead again in its own batch":  {sent, early("b")},
		"no runs":                       {sent, end, file("b"), pages(0)},
		"half a run":                    {sent, end, file("b"), frame(frameKnown, known(0, []run{one})[:7])},
		"a page that was not sent":      {sent, end, file("b"), pages(0, run{0, 1, 1})},
		"more pages than were sent":     {sent, end, file("b"), pages(0, run{0, 2, 0})},
		"runs that overlap":             {sent, end, file("b"), pages(0, run{0, 1, 0}, run{0, 1, 0})},
		"behind the part":               {sent, end, file("b"), pages(0, run{255, 2, 0})},
		"known pages of a part twice":   {sent, end, file("b"), pages(0, one), pages(0, run{1, 1, 0})},
		"known pages behind their part": {sent, end, file("b"), first, pages(0, run{1, 1, 0})},
		"a page both ways":              {sent, end, file("b"), pages(0, one), first},
		"short before known pages":      {sent, end, file("b"), pages(0, run{1, 1, 0}), short},
		"behind a short part":           {sent, end, file("b"), short, pages(1, one)},
		"shorter than its pages":        {sent, end, file("b"), pages(0, run{1, 1, 0}), sumOf("b", pageSize)},
		"known pages without a file":    {sent, end, pages(0, one)},
		"a sum that leaves them out":    {sent, end, file("b"), pages(0, one), sumOf("b", pageSize)},
		"too far":                       {sent, end, file("b"), pages(9, one)},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			said, err := feedAll(t, dir, Options{MaxBytes: 4 << 20}, bytes.Join(frames, nil))
			if err == nil || said[len(said)-1].GetFailed() == nil {
				t.Errorf("%v; the source was told %v", err, said)
			}
			wantFiles(t, dir, nil)
		})
	}
}
