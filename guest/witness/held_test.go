package main

import "testing"

// Memory that was changed in its own way is right; one that lost a change, or a byte, is not.
func TestHeld(t *testing.T) {
	h, err := hold(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	h.change(1000)
	if page := h.wrong(-1); page >= 0 || h.wrong(100) >= 0 || h.changes() != 1000 {
		t.Fatalf("page %d, %d changes", page, h.changes())
	}
	h.versions[7]++ // as if the page were older
	if page := h.wrong(-1); page != 7 {
		t.Errorf("an old page: %d", page)
	}
	h.versions[7]--
	h.page(200)[pageBytes-1] ^= 1
	if page := h.wrong(-1); page != 200 {
		t.Errorf("a wrong byte: %d", page)
	}
}

func TestHeldNothing(t *testing.T) {
	h, err := hold(0)
	if err != nil {
		t.Fatal(err)
	}
	h.change(3)
	if h.wrong(-1) >= 0 || h.wrong(3) >= 0 || h.changes() != 0 {
		t.Error("nothing is wrong of nothing")
	}
}
