package platform

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
)

// What a test that was killed has left is removed by the next: its processes, also
// those that hang, its packet filters and its disks.
func TestSweep(t *testing.T) {
	// The id of a process that has ended.
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	dead := groupPrefix + strconv.Itoa(gone.Process.Pid) + "-x"
	root, err := groupRoot()
	if err != nil {
		t.Fatal(err)
	}
	g := &group{filepath.Join(root, dead, "bus-1")}
	if err := os.MkdirAll(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	folder, err := os.MkdirTemp("/tmp", "sirocco-x-")
	if err != nil {
		t.Fatal(err)
	}
	d, err := newDisk(folder, "x", 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	orphan := filepath.Join(folder, "disk-"+strconv.Itoa(gone.Process.Pid)+"-x")
	for _, args := range [][]string{{"mkdir", orphan}, {"mount", "--move", d.Dir, orphan}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	sleeper := &Process{Name: "sleeper", path: "sleep", args: []string{"1000"}, log: filepath.Join(t.TempDir(), "log"), group: g}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	sleeper.Freeze()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: dead})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}

	if err := sweep(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-sleeper.child.Done():
	case <-time.After(10 * time.Second):
		t.Error("the process is still there")
		_ = sleeper.cmd.Process.Signal(syscall.SIGKILL)
	}
	if _, err := os.Stat(filepath.Join(root, dead)); err == nil {
		t.Error("the cgroup is still there")
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if table.Name == dead {
			t.Error("the packet filter is still there")
		}
	}
	if points, err := mountsBelow(folder); err != nil || len(points) > 0 {
		t.Errorf("mounts are still there: %s, %v", strings.Join(points, " "), err)
	}
}
