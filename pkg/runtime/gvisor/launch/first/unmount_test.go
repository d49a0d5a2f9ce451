package first

import "testing"

func TestIsUnmount(t *testing.T) {
	for _, c := range []struct {
		args []string
		want bool
	}{
		{[]string{"/proc/self/exe", "umount", "--sync-fd=3", "/proc"}, true},
		{[]string{"/proc/self/exe", "umount", "--sync-fd=3", "/"}, false},
		{[]string{"/proc/self/exe", "umount", "--sync-fd=4", "/proc"}, false},
		{[]string{"/proc/self/exe", "umount", "/proc"}, false},
		{[]string{"umount", "--sync-fd=3", "/proc"}, false},
		{[]string{"runsc-sandbox", "boot"}, false},
		{nil, false},
	} {
		if got := isUnmount(c.args); got != c.want {
			t.Errorf("%q: %v, want %v", c.args, got, c.want)
		}
	}
}
