package relay

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A body can be read again up to the size that is kept, however far it was read.
func TestBodyIsReadAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{1, 100, maxKept - 1, maxKept, maxKept + 1, 2 * maxKept}).Draw(t, "size")
		text := strings.Repeat("0123456789abcdef", size/16+1)[:size]
		req := httptest.NewRequest(http.MethodPost, "/", io.MultiReader(strings.NewReader(text)))
		b, ok := wrapBody(req)
		if !ok {
			t.Fatal("no body")
		}
		read := 0
		for range 3 {
			r := b.read(nil)
			n := rapid.IntRange(0, size).Draw(t, "read")
			got, err := io.ReadAll(io.LimitReader(r, int64(n)))
			if string(got) != text[:len(got)] || err != nil {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			read = max(read, n)
			_ = r.Close()
			if again := b.rewind(context.Background()); again != (read <= maxKept) && read <= maxKept {
				t.Fatalf("after %d bytes of %d: %t", read, size, again)
			} else if !again {
				return
			}
		}
		if got, err := io.ReadAll(b.read(nil)); string(got) != text || err != nil || !b.ended() {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	})
}
