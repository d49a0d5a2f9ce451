package first

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Where threads can't move by themselves, the whole process moves; every process of
// the bundle does, and one that was started again has.
func TestJoin(t *testing.T) {
	dir := t.TempDir()
	var procs []string
	for _, name := range []string{"one", "two"} {
		f := filepath.Join(dir, name, "cgroup.procs")
		procs = append(procs, f)
		if err := errors.Join(os.Mkdir(filepath.Dir(f), 0o700), os.WriteFile(f, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, JoinFile), []byte(strings.Join(procs, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args  []string
		joins bool
	}{
		{[]string{"runsc-sandbox", "boot", "--bundle=" + dir, "--setup-root", "sb"}, true},
		{[]string{"runsc-gofer", "gofer", "--bundle", dir, "sb"}, true},
		{[]string{"runsc-sandbox" + joinedMark, "boot", "--bundle=" + dir, "--setup-root", "sb"}, false},
		{[]string{"runsc-sandbox", "boot", "--bundle=" + dir, "sb"}, false},
		{[]string{"runsc", "state", "sb"}, false},
		{[]string{"runsc-gofer", "gofer", "--bundle=" + t.TempDir(), "sb"}, false},
	} {
		if err := joinAndRestart(c.args); err != nil {
			t.Errorf("%q: %v", c.args, err)
		}
		for _, f := range procs {
			b, err := os.ReadFile(f)
			if err != nil || (string(b) == "0") != c.joins {
				t.Errorf("%q: %s holds %q, %v", c.args, f, b, err)
			}
			if err := os.WriteFile(f, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Remove(procs[1]); err != nil {
		t.Fatal(err)
	}
	if err := joinAndRestart([]string{"runsc-gofer", "gofer", "--bundle", dir, "sb"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a cgroup that is not there: %v", err)
	}
}

func TestParse(t *testing.T) {
	for line, want := range map[string]string{
		"":                        " ",
		"runsc":                   " ",
		"runsc state sb":          " ",
		"boot --bundle=/x":        " ",
		"runsc gofer --bundle":    " ",
		"runsc gofer --bundle=/x": "gofer /x",
		"runsc --root=/r boot --bundle=/x --setup-root --total-memory 99 sb": "boot /x",
		"runsc boot --setup-root --bundle /x sb":                             "boot /x",
		"runsc boot --bundle=/x --setup-root=false sb":                       " ",
		"runsc boot --bundle=/x sb":                                          " ",
	} {
		cmd, bundle := Parse(strings.Fields(line))
		if got := cmd + " " + bundle; got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("runsc-sandbox\x00boot\x00--bundle=/x\x00--setup-root\x00sb")
	f.Fuzz(func(t *testing.T, line string) {
		cmd, bundle := Parse(strings.Split(line, "\x00"))
		if cmd != "" && cmd != "boot" && cmd != "gofer" || (cmd == "") != (bundle == "") {
			t.Errorf("command %q, bundle %q", cmd, bundle)
		}
	})
}
