package cork

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// pieces keeps each write by itself.
type pieces [][]byte

func (p *pieces) Write(b []byte) (int, error) {
	*p = append(*p, bytes.Clone(b))
	return len(b), nil
}

// Whatever is gathered, all bytes arrive in order, each gathering in one piece
// and nothing later than its end.
func TestEverythingArrivesInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var got pieces
		var want [][]byte
		w := New(&got)
		for range rapid.IntRange(0, 8).Draw(t, "steps") {
			parts := rapid.SliceOf(rapid.SliceOfN(rapid.Byte(), 1, 40<<10)).Draw(t, "parts")
			if !rapid.Bool().Draw(t, "gather") {
				for _, p := range parts {
					_, _ = w.Write(p)
				}
				want = append(want, parts...)
			} else {
				_, err := w.Gather(func() (int, error) {
					for _, p := range parts {
						_, _ = w.Write(p)
					}
					return len(parts), nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if whole := slices.Concat(parts...); len(whole) > 0 {
					want = append(want, whole)
				}
			}
			if !slices.EqualFunc(got, want, bytes.Equal) {
				t.Fatalf("%d pieces arrived, want %d", len(got), len(want))
			}
		}
	})
}

type broken struct{}

var errBroken = errors.New("broken")

func (broken) Write([]byte) (int, error) { return 0, errBroken }

// A failure is reported by the Gather that met it, and the next starts empty.
func TestAFailureIsReported(t *testing.T) {
	w := New(broken{})
	if n, err := w.Gather(func() (int, error) { return w.Write([]byte("x")) }); n != 0 || !errors.Is(err, errBroken) {
		t.Errorf("%d, %v", n, err)
	}
	own := errors.New("of the caller")
	if _, err := w.Gather(func() (int, error) { return 0, own }); !errors.Is(err, own) {
		t.Errorf("the caller's error became %v", err)
	}
	if n, err := w.Gather(func() (int, error) { return 7, nil }); n != 7 || err != nil {
		t.Errorf("nothing gathered: %d, %v", n, err)
	}
}
