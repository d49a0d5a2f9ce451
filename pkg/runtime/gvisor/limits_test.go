package gvisor_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/gvisortest"
	"golang.org/x/sys/unix"
)

// TestEveryThreadIsLimited: no thread of a sandbox's processes is outside its cgroup,
// in any of the hierarchies that have limits. Each joins by itself while it starts.
func TestEveryThreadIsLimited(t *testing.T) {
	_, bin := guest(t)
	root := t.TempDir()
	if err := os.Mkdir(root+"/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := gvisor.Config{RunscPath: gvisortest.Runsc(t), StateDir: stateDir(t)}
	rt := openConfig(t, cfg)
	image := spec(t, "sb-image", "serve")
	// A folder has a gofer process too.
	folder := spec(t, "sb-folder", "serve")
	folder.Rootfs = runtime.Rootfs{Dir: root, Binds: []runtime.Bind{{Source: filepath.Dir(bin), Target: "/bin"}}}
	folder.Args[0] = "/bin/guest"
	var mount unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &mount); err != nil {
		t.Fatal(err)
	}
	limited := map[string]bool{"memory": true, "pids": true, "cpu": true, "cpuacct": true, "cpu,cpuacct": true}
	if mount.Type == unix.CGROUP2_SUPER_MAGIC {
		limited = map[string]bool{"": true}
	}
	for _, s := range []runtime.Spec{image, folder} {
		sb := create(t, rt, s)
		ask(t, sb, "fork 5")
		threads := 0
		for _, dir := range processesOf(t, cfg.StateDir+"/"+s.ID) {
			files, err := filepath.Glob(dir + "/task/*/cgroup")
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err != nil {
					continue // it has ended
				}
				threads++
				for line := range strings.Lines(string(b)) {
					_, rest, _ := strings.Cut(line, ":")
					controllers, path, _ := strings.Cut(strings.TrimSpace(rest), ":")
					if limited[controllers] && filepath.Base(path) != s.ID {
						t.Errorf("%s: the %s cgroup is %s", f, controllers, path)
					}
				}
			}
		}
		// gVisor's own threads and a few that run the guest.
		if threads < 10 {
			t.Errorf("%s: looked at %d threads, too few to be all", s.ID, threads)
		}
	}
}

// processesOf returns the folders in /proc of the processes that were started for the
// sandbox in the folder bundle, and of all others in their PID namespaces.
func processesOf(t *testing.T, bundle string) []string {
	t.Helper()
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	namespaces, found := map[string]bool{}, map[string]bool{}
	for _, dir := range dirs {
		if b, err := os.ReadFile(dir + "/cmdline"); err == nil && bytes.HasPrefix(b, []byte("runsc-")) && bytes.Contains(b, []byte(bundle)) {
			found[dir] = true
			if ns, err := os.Readlink(dir + "/ns/pid"); err == nil && ns != own {
				namespaces[ns] = true
			}
		}
	}
	for _, dir := range dirs {
		if ns, err := os.Readlink(dir + "/ns/pid"); err == nil && namespaces[ns] {
			found[dir] = true
		}
	}
	var list []string
	for dir := range found {
		list = append(list, dir)
	}
	return list
}
