package gvisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/pin"
	"golang.org/x/sys/unix"
)

func TestPinIsTheModule(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", "gvisor.dev/gvisor").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != pin.Module {
		t.Errorf("go.mod has gVisor %s, pin.Module is %s", got, pin.Module)
	}
}

// fixture writes files below a folder that stands for /sys/fs/cgroup.
func fixture(t *testing.T, unified bool, files map[string]string) cgroup {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		f := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return cgroup{hierarchies{root: root, unified: unified}, "p/sb"}
}

func TestCgroupStats(t *testing.T) {
	want := runtime.Stats{MemoryBytes: 900, CPU: 5 * time.Millisecond, Pids: 7, OOMKills: 2}
	v2 := fixture(t, true, map[string]string{
		"p/sb/memory.current": "1000\n", "p/sb/memory.stat": "anon 5\ninactive_file 100\n", "p/sb/pids.current": "7\n",
		"p/sb/cpu.stat": "usage_usec 5000\nuser_usec 1\n", "p/sb/memory.events": "low 0\noom 3\noom_kill 2\n",
	})
	v1 := fixture(t, false, map[string]string{
		"memory/p/sb/memory.usage_in_bytes": "1000\n", "memory/p/sb/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
		"pids/p/sb/pids.current": "7\n", "cpuacct/p/sb/cpuacct.usage": "5000000\n",
		"memory/p/sb/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
	})
	for name, c := range map[string]cgroup{"v1": v1, "v2": v2} {
		if got, err := c.stats(); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestCgroupSettings(t *testing.T) {
	r := runtime.Resources{CPUMillis: 1500, MemoryBytes: 1 << 30, Pids: 100}
	v2 := fixture(t, true, map[string]string{"cgroup.subtree_control": "", "p/cgroup.subtree_control": "", "p/sb/memory.swap.max": "max"})
	v1 := fixture(t, false, nil)
	for _, c := range []cgroup{v1, v2} {
		if err := c.create(r); err != nil {
			t.Fatal(err)
		}
		if err := c.weigh(weightIdle); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		v2.h.root + "/p/sb/memory.max": "1073741824", v2.h.root + "/p/sb/memory.swap.max": "0",
		v2.h.root + "/p/sb/cpu.max": "150000 100000", v2.h.root + "/p/sb/pids.max": "556",
		v2.h.root + "/cgroup.subtree_control": "+memory +cpu +pids", v2.h.root + "/p/cgroup.subtree_control": "+memory +cpu +pids",
		v1.h.root + "/memory/p/sb/memory.limit_in_bytes": "1073741824",
		v1.h.root + "/cpu/p/sb/cpu.cfs_quota_us":         "150000", v1.h.root + "/pids/p/sb/pids.max": "556",
		v1.h.root + "/cpu/p/sb/cpu.shares": "2", v2.h.root + "/p/sb/cpu.weight": "1",
	} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	if got := v2.children(); len(got) != 0 {
		t.Errorf("children %v", got)
	}
	if got := (cgroup{v1.h, "p"}).children(); !reflect.DeepEqual(got, []string{"sb"}) {
		t.Errorf("children %v", got)
	}
	if got := v2.procs(); !reflect.DeepEqual(got, []string{v2.h.root + "/p/sb/cgroup.procs"}) {
		t.Errorf("procs %v", got)
	}
	if got := v1.procs(); len(got) != 4 {
		t.Errorf("procs %v", got)
	}
	if s := v1.h.settings(runtime.Resources{}); len(s) != 0 {
		t.Errorf("no limits: %v", s)
	}
}

// In a container of cgroups v1, sandboxes leave the trees by which its end would be
// theirs, for one cgroup of the node in each; elsewhere there is nothing to leave.
func TestForeignTrees(t *testing.T) {
	for own, want := range map[string][]string{
		"9:name=systemd:/docker/ab\n6:freezer:/docker/ab\n5:devices:/docker/ab\n4:memory:/docker/ab\n0::/docker/ab\n": {"freezer", "devices"},
		"6:freezer:/\n5:devices:/\n4:memory:/user/1\n0::/\n":                                                          nil,
		"0::/docker/ab\n": nil, "": nil, "devices\n": nil,
	} {
		if got := foreignTrees(own); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, want %v", own, got, want)
		}
	}
	c := fixture(t, false, nil)
	c.h.foreign = []string{"devices", "freezer"}
	if err := c.create(runtime.Resources{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range c.h.foreign {
		f := c.h.root + "/" + name + "/p/cgroup.procs"
		if !slices.Contains(c.joins(), f) || slices.Contains(c.procs(), f) {
			t.Errorf("it joins %v and lists %v: want %s in the first alone", c.joins(), c.procs(), f)
		}
		if _, err := os.Stat(c.h.root + "/" + name + "/p"); err != nil {
			t.Error(err)
		}
	}
	if err := c.remove(); err != nil {
		t.Fatal(err)
	}
	c.parent().tryRemove()
	if left, err := filepath.Glob(c.h.root + "/*/p"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestJudge(t *testing.T) {
	kill, term, code3 := unix.WaitStatus(9), unix.WaitStatus(15), unix.WaitStatus(3<<8)
	oom := runtime.Exit{Code: 137, Signal: "SIGKILL", OOM: true}
	for name, c := range map[string]struct {
		e    ending
		want runtime.Exit
		err  bool
	}{
		"code":                      {ending{guest: code3, guestKnown: true, host: code3, hostKnown: true}, runtime.Exit{Code: 3}, false},
		"signal":                    {ending{guest: term, guestKnown: true}, runtime.Exit{Code: 143, Signal: "SIGTERM"}, false},
		"too fast to ask":           {ending{host: code3, hostKnown: true}, runtime.Exit{Code: 3}, false},
		"destroyed":                 {ending{host: kill, hostKnown: true, killed: true}, runtime.Exit{Code: 137, Signal: "SIGKILL"}, false},
		"destroyed, had killed one": {ending{host: kill, hostKnown: true, killed: true, oomKills: 1}, runtime.Exit{Code: 137, Signal: "SIGKILL"}, false},
		"oom":                       {ending{host: kill, hostKnown: true, oomKills: 1}, oom, false},
		"oom, adopted":              {ending{oomKills: 1}, oom, false},
		"oom of process 1":          {ending{guest: kill, guestKnown: true, oomKills: 1}, oom, false},
		"oom of a child, then exit": {ending{guest: code3, guestKnown: true, oomKills: 1}, runtime.Exit{Code: 3}, false},
		"killed itself":             {ending{guest: kill, guestKnown: true}, runtime.Exit{Code: 137, Signal: "SIGKILL"}, false},
		"someone killed the sentry": {ending{host: kill, hostKnown: true}, runtime.Exit{Code: 137, Signal: "SIGKILL"}, true},
		"gone, adopted":             {ending{}, runtime.Exit{Code: 137, Signal: "SIGKILL"}, true},
	} {
		got := judge(c.e)
		if (got.Err != nil) != c.err {
			t.Errorf("%s: error %v", name, got.Err)
		}
		got.Err = nil
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestSpecHoldsNothingOfTheTenant(t *testing.T) {
	s := runtime.Spec{
		ID: "sb-x", Rootfs: runtime.Rootfs{EROFS: "/img"}, Args: []string{"/init"},
		Env: []string{"dev.gvisor.flag.debug=true"}, Hostname: "dev.gvisor.flag.overlay2",
	}
	o := ociSpec(s, "/state/sb-x", 5)
	if len(o.Annotations) != 4 || o.Annotations["dev.gvisor.spec.rootfs.source"] != "/img" || o.Annotations["dev.gvisor.spec.rootfs.options"] != "size=5" {
		t.Errorf("annotations %v", o.Annotations)
	}
	for _, c := range o.Process.Capabilities.Bounding {
		if c == "CAP_SYS_RESOURCE" || c == "CAP_NET_ADMIN" || c == "CAP_SYS_PTRACE" {
			t.Errorf("capability %s", c)
		}
	}
	for _, m := range o.Mounts {
		if m.Type == "bind" {
			t.Errorf("mount %v", m)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for name, c := range map[string]Config{
		"no runsc": {StateDir: "/x"}, "relative": {RunscPath: "r", StateDir: "x"},
		"too long": {RunscPath: "r", StateDir: "/" + strings.Repeat("x", 60)}, "cgroup": {RunscPath: "r", StateDir: "/x", CgroupParent: "../x"},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c, err := (Config{RunscPath: "/bin/true", StateDir: "/x"}).withDefaults()
	if err != nil || c.DiskBytes != DefaultDiskBytes || !strings.HasPrefix(c.CgroupParent, "sirocco-") {
		t.Errorf("%+v, %v", c, err)
	}
	if err := pin.Check("/bin/true"); err == nil || !strings.Contains(err.Error(), "make bin/runsc") {
		t.Errorf("another program for runsc: %v", err)
	}
}

func FuzzParseStat(f *testing.F) {
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("1 (a) b) R 1 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = parseStat(b)
		line := fmt.Sprintf("1 (%s) S 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 77 22", b)
		if start, state, err := parseStat([]byte(line)); err != nil || state != 'S' || start != 77 {
			t.Errorf("%q: %d %c %v", line, start, state, err)
		}
	})
}

// TestRoomy: a checkpoint that might not fit is not restored in the background.
func TestRoomy(t *testing.T) {
	dir := t.TempDir()
	if _, err := roomy(dir, 0); !errors.Is(err, runtime.ErrImage) {
		t.Errorf("without pages: %v", err)
	}
	f, err := os.Create(filepath.Join(dir, runtime.PagesFile))
	if err == nil {
		err = errors.Join(f.Truncate(256<<20), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int64]bool{0: true, 1 << 30: true, 384 << 20: true, 383 << 20: false, 128 << 20: false} {
		if got, err := roomy(dir, limit); got != want || err != nil {
			t.Errorf("256 MiB of pages and a limit of %d MiB: %v, %v", limit>>20, got, err)
		}
	}
}
