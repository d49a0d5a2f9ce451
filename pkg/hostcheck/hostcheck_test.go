package hostcheck

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFindsWhatAppears(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	for _, d := range []string{"memory/p/old", "pids/p"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	scope := Scope{CgroupRoot: root, CgroupParent: "p", Folders: []string{dir}, Processes: []string{"hostcheck-marker"}, Mounts: []string{dir}}
	before := Take(scope)
	if l := Diff(before, Take(scope)); len(l) != 0 {
		t.Fatalf("nothing happened, but %v", l)
	}

	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "pids/p/new"), 0o755); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cat", "-", "hostcheck-marker")
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	leaks := Leaks(before, Take(scope))
	for _, want := range []string{"file: 1 more of " + dir + "/file", "cgroup: 1 more of " + root + "/pids/p/new", "fd: 2 more of pipe", "hostcheck-marker"} {
		if !slices.ContainsFunc(leaks, func(l string) bool { return strings.Contains(l, want) }) {
			t.Errorf("%q is not among %q", want, leaks)
		}
	}
	// Its end makes it a zombie until it is waited for.
	w.Close()
	r.Close()
	zombie := func() bool {
		return slices.ContainsFunc(Leaks(before, Take(Scope{})), func(l string) bool { return strings.HasPrefix(l, "zombie") })
	}
	for !zombie() {
	}
	_ = cmd.Wait()
	if zombie() {
		t.Error("a zombie after the wait")
	}

	if err := os.Remove(filepath.Join(root, "memory/p/old")); err != nil {
		t.Fatal(err)
	}
	if d := Diff(before, Take(scope)); !slices.ContainsFunc(d, func(l string) bool { return strings.Contains(l, "fewer of "+root+"/memory/p/old") }) {
		t.Errorf("what disappeared is not in %q", d)
	}
}

func FuzzParsers(f *testing.F) {
	f.Add("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw", "1 (a) b) Z 7 7")
	f.Fuzz(func(t *testing.T, mount, stat string) {
		if point, _, ok := parseMount(mount); ok && point == "" {
			t.Errorf("mount point of %q is empty", mount)
		}
		if state, parent, ok := parseStat(stat); ok && (state == "" || parent == "") {
			t.Errorf("status of %q is empty", stat)
		}
	})
}
