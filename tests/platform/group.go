package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"
)

// groupPrefix begins the names of the cgroups that tests make; the id of the test's
// process follows.
const groupPrefix = "sirocco-tests-"

// group is a cgroup (version 2) of a process and of what it starts, by which packet
// filters know its sockets, and by which all of it is found if the test is killed.
type group struct{ dir string }

// groupRoot returns where cgroups of version 2 are mounted: at the usual place, or
// beside those of version 1.
func groupRoot() (string, error) {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir, nil
		}
	}
	return "", errors.New("these tests tell processes apart by cgroups of version 2: mount them (mount -t cgroup2 none /sys/fs/cgroup/unified)")
}

// newGroup makes a cgroup for one process of a fleet.
func newGroup(fleet, process string) (*group, error) {
	root, err := groupRoot()
	if err != nil {
		return nil, err
	}
	g := &group{filepath.Join(root, groupPrefix+strconv.Itoa(os.Getpid())+"-"+fleet, process)}
	if err := os.MkdirAll(g.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make a cgroup: %w", err)
	}
	return g, nil
}

// groupLevel is how deep newGroup's are.
const groupLevel = 2

// id is by which the kernel knows it.
func (g *group) id() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(g.dir, &st); err != nil {
		return 0, fmt.Errorf("look up cgroup %s: %w", g.dir, err)
	}
	return st.Ino, nil
}

// open returns the descriptor that a process is started with; the caller closes it.
func (g *group) open() (*os.File, error) { return os.Open(g.dir) }

// close removes it; no process may be left in it. Twice is harmless.
func (g *group) close() error {
	err := os.Remove(g.dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	_ = os.Remove(filepath.Dir(g.dir)) // the last one succeeds
	return err
}

// kill ends everything in it.
func (g *group) kill() error {
	if err := os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end what is in cgroup %s: %w", g.dir, err)
	}
	return Poll(10*time.Second, func() string {
		if err := g.close(); err != nil {
			return err.Error()
		}
		return ""
	})
}

// ownerOf finds the process of a test in the name of something that it made.
var ownerOf = regexp.MustCompile(`-([0-9]+)-`)

// orphaned is true for the name of something whose test is gone.
func orphaned(name string) bool {
	m := ownerOf.FindStringSubmatch(name)
	if m == nil {
		return false
	}
	pid, err := strconv.Atoi(m[1])
	return err == nil && pid != os.Getpid() && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// sweep removes what tests that were killed have left: packet filters, processes
// with their sandboxes, mounts. One test does it at a time.
func sweep() error {
	lock := flock.New(filepath.Join(os.TempDir(), groupPrefix+"sweep.lock"))
	if err := lock.Lock(); err != nil {
		return fmt.Errorf("wait for who clears up: %w", err)
	}
	defer func() { _ = lock.Unlock() }()
	if err := sweepCuts(); err != nil {
		return err
	}
	root, err := groupRoot()
	if err != nil {
		return err
	}
	dirs, err := filepath.Glob(filepath.Join(root, groupPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if !orphaned(filepath.Base(dir)) {
			continue
		}
		processes, err := filepath.Glob(filepath.Join(dir, "*", "cgroup.kill"))
		if err != nil {
			return err
		}
		for _, file := range processes {
			g := &group{filepath.Dir(file)}
			if err := g.kill(); err != nil {
				return err
			}
			// Of all processes, nodes only have the test's id in their names.
			if node := filepath.Base(g.dir); ownerOf.MatchString(node) {
				if err := wreck(node); err != nil {
					return err
				}
			}
		}
		_ = os.Remove(dir) // gone with the last of them
	}
	return sweepDisks()
}

// mountsBelow returns the mount points whose path begins with prefix, the last one
// mounted first.
func mountsBelow(prefix string) ([]string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], prefix) {
			points = append([]string{f[4]}, points...)
		}
	}
	return points, nil
}
