package gvisor

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"golang.org/x/sys/unix"
)

// cpuPeriod is the period of CPU limits, in microseconds: the kernel's default.
const cpuPeriod = 100_000

// cpuQuota returns how many microseconds of each period millis allow. The kernel
// takes no less than 1,000.
func cpuQuota(millis int64) int64 { return max(1000, millis*cpuPeriod/1000) }

// hostPids is the limit on processes and threads of this machine that goes with a
// limit on those of the guest: gVisor's own threads, and for each of the guest's
// up to a process that holds its memory and threads to run in. It is the second
// fence; RLIMIT_NPROC inside is the first.
func hostPids(guest int64) int64 { return 256 + 3*guest }

// hierarchies are the cgroup trees of a machine that limits need.
type hierarchies struct {
	root    string
	unified bool
	// foreign are further trees of version 1 that sandboxes must not stay in; see
	// foreignTrees.
	foreign []string
}

// findHierarchies looks at what is mounted at root.
func findHierarchies(root string) (hierarchies, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return hierarchies{}, fmt.Errorf("gvisor: cgroups at %s: %w (mount them there)", root, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return hierarchies{root: root, unified: true}, nil
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return hierarchies{}, fmt.Errorf("gvisor: look for own cgroups: %w", err)
	}
	return hierarchies{root: root, foreign: foreignTrees(string(own))}, nil
}

// foreignTrees returns those trees of version 1 by which a container engine finds
// what it kills and freezes, where this program is in a cgroup of its container's;
// own is /proc/self/cgroup. With the machine's process ids, an engine takes every
// process that is still in there to the end with the container. A sandbox limits
// nothing in these trees: one cgroup of each is enough for all sandboxes of a node.
func foreignTrees(own string) []string {
	var trees []string
	for line := range strings.Lines(own) {
		// 5:devices:/docker/<id>
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) == 3 && (f[1] == "devices" || f[1] == "freezer") && f[2] != "/" {
			trees = append(trees, f[1])
		}
	}
	return trees
}

// controllers are the trees that a sandbox has a cgroup in.
func (h hierarchies) controllers() []string {
	if h.unified {
		return []string{""}
	}
	return []string{"memory", "cpu", "cpuacct", "pids"}
}

// cgroup is that of one sandbox, or of their parent: a path below each tree.
type cgroup struct {
	h    hierarchies
	path string
}

// dir returns the folder of the cgroup in the tree of a controller.
func (c cgroup) dir(controller string) string {
	if c.h.unified {
		return filepath.Join(c.h.root, c.path)
	}
	return filepath.Join(c.h.root, controller, c.path)
}

// setting is a value to write to a file of a cgroup.
type setting struct {
	controller, file, value string
	// optional: the file may be missing, as swap accounting is a boot option.
	optional bool
}

// settings translates limits into what to write, in this order.
func (h hierarchies) settings(r runtime.Resources) []setting {
	num := func(n int64) string { return strconv.FormatInt(n, 10) }
	var s []setting
	if h.unified {
		// One process of a sandbox can't live without the others.
		s = append(s, setting{"", "memory.oom.group", "1", true})
		if r.MemoryBytes > 0 {
			s = append(s, setting{"", "memory.max", num(r.MemoryBytes), false}, setting{"", "memory.swap.max", "0", true})
		}
		if r.CPUMillis > 0 {
			s = append(s, setting{"", "cpu.max", fmt.Sprintf("%d %d", cpuQuota(r.CPUMillis), cpuPeriod), false})
		}
		if r.Pids > 0 {
			s = append(s, setting{"", "pids.max", num(hostPids(r.Pids)), false})
		}
		return s
	}
	if r.MemoryBytes > 0 {
		s = append(s,
			setting{"memory", "memory.limit_in_bytes", num(r.MemoryBytes), false},
			setting{"memory", "memory.memsw.limit_in_bytes", num(r.MemoryBytes), true})
	}
	if r.CPUMillis > 0 {
		s = append(s,
			setting{"cpu", "cpu.cfs_period_us", num(cpuPeriod), false},
			setting{"cpu", "cpu.cfs_quota_us", num(cpuQuota(r.CPUMillis)), false})
	}
	if r.Pids > 0 {
		s = append(s, setting{"pids", "pids.max", num(hostPids(r.Pids)), false})
	}
	return s
}

// create makes the cgroup and sets its limits. What exists already is reused.
func (c cgroup) create(r runtime.Resources) error {
	for _, name := range c.h.controllers() {
		if err := os.MkdirAll(c.dir(name), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	for _, name := range c.h.foreign {
		if err := os.MkdirAll(c.parent().dir(name), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	if c.h.unified {
		if err := c.delegate(); err != nil {
			return err
		}
	}
	for _, s := range c.h.settings(r) {
		err := os.WriteFile(filepath.Join(c.dir(s.controller), s.file), []byte(s.value), 0o644)
		if err != nil && (!s.optional || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission)) {
			return fmt.Errorf("limit %s to %s: %w", s.file, s.value, err)
		}
	}
	return nil
}

// memoryLimit returns the limit in bytes, 0 for none.
func (c cgroup) memoryLimit() (int64, error) {
	name := "memory.limit_in_bytes"
	if c.h.unified {
		name = "memory.max"
	}
	b, err := os.ReadFile(filepath.Join(c.dir("memory"), name))
	if err != nil {
		return 0, fmt.Errorf("read memory limit: %w", err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n >= noLimit {
		// "max" in version 2; in version 1 the largest number of whole pages.
		return 0, nil
	}
	return n, nil
}

// noLimit is more memory than any machine has.
const noLimit = 1 << 62

// limitMemory sets the limit in bytes; 0 lifts it. A limit below what is in use is
// refused: version 2 would kill for it.
func (c cgroup) limitMemory(n int64) error {
	if n > 0 {
		st, err := c.stats()
		if err != nil {
			return fmt.Errorf("limit memory: %w", err)
		}
		if st.MemoryBytes > n {
			return fmt.Errorf("limit memory to %d bytes: %d are in use", n, st.MemoryBytes)
		}
	}
	value := strconv.FormatInt(n, 10)
	files := []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}
	switch {
	case c.h.unified && n == 0:
		files, value = []string{"memory.max"}, "max"
	case c.h.unified:
		files = []string{"memory.max"}
	case n == 0:
		// The limit with swap is never the lower one.
		files, value = []string{files[1], files[0]}, "-1"
	}
	for _, f := range files {
		err := os.WriteFile(filepath.Join(c.dir("memory"), f), []byte(value), 0o644)
		if err != nil && !(strings.Contains(f, "memsw") && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission))) {
			return fmt.Errorf("limit %s to %s: %w", f, value, err)
		}
	}
	return nil
}

// weight is a cgroup's part of the processors where there is not enough for all.
type weight struct{ shares, weight string } // in version 1, in version 2

var (
	weightShared = weight{"1024", "100"} // the kernel's defaults
	weightIdle   = weight{"2", "1"}      // the least there is
)

// weigh sets the cgroup's weight.
func (c cgroup) weigh(w weight) error {
	file, value := "cpu.shares", w.shares
	if c.h.unified {
		file, value = "cpu.weight", w.weight
	}
	if err := os.WriteFile(filepath.Join(c.dir("cpu"), file), []byte(value), 0o644); err != nil {
		return fmt.Errorf("weigh cgroup: %w", err)
	}
	return nil
}

// delegate switches the controllers on in every cgroup above c, which version 2
// asks for before a child has their files.
func (c cgroup) delegate() error {
	dir := c.h.root
	for _, part := range strings.Split(filepath.Clean(c.path), "/") {
		f := filepath.Join(dir, "cgroup.subtree_control")
		if err := os.WriteFile(f, []byte("+memory +cpu +pids"), 0o644); err != nil {
			return fmt.Errorf("switch controllers on in %s: %w", f, err)
		}
		dir = filepath.Join(dir, part)
	}
	return nil
}

// parent is the cgroup of all sandboxes of the node.
func (c cgroup) parent() cgroup { return cgroup{c.h, filepath.Dir(c.path)} }

// joins are the files through which a sandbox's process joins.
func (c cgroup) joins() []string {
	f := c.procs()
	for _, name := range c.h.foreign {
		f = append(f, filepath.Join(c.parent().dir(name), "cgroup.procs"))
	}
	return f
}

// procs are the files that list what is in the cgroup.
func (c cgroup) procs() []string {
	var f []string
	for _, name := range c.h.controllers() {
		f = append(f, filepath.Join(c.dir(name), "cgroup.procs"))
	}
	return f
}

// remove takes the cgroup away. The kernel keeps it for a moment after the last
// process is gone and tells nobody when that moment ends, hence the retries.
func (c cgroup) remove() error {
	var errs []error
	for _, name := range c.h.controllers() {
		dir := c.dir(name)
		wait := 200 * time.Microsecond
		for deadline := time.Now().Add(5 * time.Second); ; wait = min(2*wait, 50*time.Millisecond) {
			err := syscall.Rmdir(dir)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
				errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
				break
			}
			time.Sleep(wait)
		}
	}
	return errors.Join(errs...)
}

// tryRemove removes the cgroup if it is empty.
func (c cgroup) tryRemove() {
	for _, name := range slices.Concat(c.h.controllers(), c.h.foreign) {
		_ = syscall.Rmdir(c.dir(name))
	}
}

// children are the names of the cgroups inside c.
func (c cgroup) children() []string {
	seen := map[string]bool{}
	var names []string
	for _, ctl := range c.h.controllers() {
		entries, _ := os.ReadDir(c.dir(ctl))
		for _, e := range entries {
			if e.IsDir() && !seen[e.Name()] {
				seen[e.Name()] = true
				names = append(names, e.Name())
			}
		}
	}
	return names
}

// pids are the processes in the cgroup.
func (c cgroup) pids() []int {
	var pids []int
	for _, f := range c.procs() {
		b, _ := os.ReadFile(f)
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// stats reads what the cgroup uses. Memory leaves out file pages that the kernel
// can drop at once.
func (c cgroup) stats() (runtime.Stats, error) {
	var (
		s   runtime.Stats
		err error
	)
	usage, stat, inactive, tasks := "memory.usage_in_bytes", "memory.stat", "total_inactive_file", "pids.current"
	if c.h.unified {
		usage, inactive = "memory.current", "inactive_file"
	}
	if s.MemoryBytes, err = readInt(filepath.Join(c.dir("memory"), usage)); err != nil {
		return s, err
	}
	files, err := readKey(filepath.Join(c.dir("memory"), stat), inactive)
	if err != nil {
		return s, err
	}
	s.MemoryBytes = max(0, s.MemoryBytes-files)
	if s.Pids, err = readInt(filepath.Join(c.dir("pids"), tasks)); err != nil {
		return s, err
	}
	if c.h.unified {
		us, err := readKey(filepath.Join(c.dir(""), "cpu.stat"), "usage_usec")
		if err != nil {
			return s, err
		}
		s.CPU = time.Duration(us) * time.Microsecond
	} else {
		ns, err := readInt(filepath.Join(c.dir("cpuacct"), "cpuacct.usage"))
		if err != nil {
			return s, err
		}
		s.CPU = time.Duration(ns)
	}
	s.OOMKills, err = c.oomKills()
	return s, err
}

// oomKills returns how often the kernel killed a process at the memory limit.
func (c cgroup) oomKills() (int64, error) {
	if c.h.unified {
		return readKey(filepath.Join(c.dir(""), "memory.events"), "oom_kill")
	}
	return readKey(filepath.Join(c.dir("memory"), "memory.oom_control"), "oom_kill")
}

// readInt reads a file that holds one number.
func readInt(name string) (int64, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// readKey reads the number behind key in a file of "key number" lines.
func readKey(name, key string) (int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if k, v, ok := strings.Cut(sc.Text(), " "); ok && k == key {
			return strconv.ParseInt(v, 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", name, key)
}
