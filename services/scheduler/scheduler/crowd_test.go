package scheduler

import "testing"

// TestCrowd: one tenant's crowd does not keep another's sandboxes from waiting,
// and who leaves makes room.
func TestCrowd(t *testing.T) {
	c := newCrowd(2)
	first, ok := c.enter("a")
	if !ok {
		t.Fatal("the first may not wait")
	}
	second, ok := c.enter("a")
	if !ok {
		t.Fatal("the second may not wait")
	}
	if _, ok := c.enter("a"); ok {
		t.Fatal("a third of the same tenant may wait")
	}
	other, ok := c.enter("b")
	if !ok {
		t.Fatal("another tenant may not wait")
	}
	first()
	first()
	third, ok := c.enter("a")
	if !ok {
		t.Fatal("who left made no room")
	}
	if _, ok := c.enter("a"); ok {
		t.Fatal("leaving twice made room twice")
	}
	second()
	third()
	other()
	if len(c.waiting) != 0 {
		t.Fatalf("%d tenants are left behind", len(c.waiting))
	}
}
