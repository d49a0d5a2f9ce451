package hostcheck

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestLeaksAreSeen(t *testing.T) {
	dir := t.TempDir()
	scope := Scope{Folders: []string{dir}, Processes: []string{"987.654"}, NetNS: []string{"none-such"}, Mounts: []string{dir}}
	before := Take(scope)
	if leaks := Leaks(before, Take(scope)); len(leaks) != 0 {
		t.Fatalf("nothing happened, and yet: %v", leaks)
	}

	path := filepath.Join(dir, "left")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("sleep", "987.654")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	leaks := strings.Join(Leaks(before, Take(scope)), "\n")
	for _, want := range []string{"file: 1 more of " + path, "fd: 1 more of", "process: 1 more of"} {
		if !strings.Contains(leaks, want) {
			t.Errorf("no %q in:\n%s", want, leaks)
		}
	}

	_ = sleeper.Process.Kill()
	_ = sleeper.Wait()
	_ = file.Close()
	_ = os.Remove(path)
	if diff := Diff(before, Take(scope)); len(diff) != 0 {
		t.Errorf("all is gone, and yet: %v", diff)
	}
}

func TestZombiesAreSeen(t *testing.T) {
	before := Take(Scope{})
	child := exec.Command("true")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(strings.Join(Leaks(before, Take(Scope{})), "\n"), "zombie: 1 more") {
		if t.Context().Err() != nil {
			t.Fatal("the child that nobody waits for was not seen")
		}
	}
	_ = child.Wait()
}

func FuzzParseMount(f *testing.F) {
	f.Add("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue")
	f.Fuzz(func(_ *testing.T, line string) { parseMount(line) })
}

func FuzzParseStat(f *testing.F) {
	f.Add("1234 (a (b) c) Z 1 2 3")
	f.Fuzz(func(_ *testing.T, line string) { parseStat(line) })
}
