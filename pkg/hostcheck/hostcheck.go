// Package hostcheck compares what a machine holds before and after something that
// must leave no trace: cgroups, mounts, network namespaces, processes, zombies,
// open descriptors, files. It is for tests and benchmarks.
package hostcheck

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Scope says what to look at; what is empty is not looked at.
type Scope struct {
	// CgroupRoot is where cgroups are mounted; default /sys/fs/cgroup. Of all
	// trees below it, the cgroups below CgroupParent are listed.
	CgroupRoot, CgroupParent string
	// Processes lists processes with one of these strings in their command line.
	Processes []string
	// Mounts lists mounts whose mount point or source begins with one of these.
	// Nil lists all of them.
	Mounts []string
	// Folders lists all files below these.
	Folders []string
	// NetNS lists named network namespaces whose name begins so. Nil: all.
	NetNS []string
}

// Snapshot is what Take saw: for each kind of thing, how many of each name.
type Snapshot map[string]map[string]int

// Take looks at the machine. Errors of what disappears while it looks are no
// errors; what can't be looked at at all is simply not there.
func Take(s Scope) Snapshot {
	if s.CgroupRoot == "" {
		s.CgroupRoot = "/sys/fs/cgroup"
	}
	snap := Snapshot{"cgroup": {}, "mount": {}, "netns": {}, "process": {}, "zombie": {}, "fd": {}, "file": {}}
	if s.CgroupParent != "" {
		snap.cgroups(s)
	}
	snap.mounts(s.Mounts)
	snap.netns(s.NetNS)
	snap.processes(s.Processes)
	snap.descriptors()
	for _, dir := range s.Folders {
		_ = filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
			if err == nil && p != dir {
				snap["file"][p]++
			}
			return nil
		})
	}
	return snap
}

// Leaks returns what after has and before has not, one line each, sorted.
func Leaks(before, after Snapshot) []string {
	var out []string
	for kind, names := range after {
		for name, n := range names {
			if more := n - before[kind][name]; more > 0 {
				out = append(out, fmt.Sprintf("%s: %d more of %s", kind, more, name))
			}
		}
	}
	slices.Sort(out)
	return out
}

// Diff returns both directions: what appeared (as Leaks) and what disappeared.
func Diff(before, after Snapshot) []string {
	out := Leaks(before, after)
	for _, l := range Leaks(after, before) {
		out = append(out, strings.Replace(l, "more of", "fewer of", 1))
	}
	return out
}

func (snap Snapshot) cgroups(s Scope) {
	trees := []string{s.CgroupRoot}
	entries, _ := os.ReadDir(s.CgroupRoot)
	for _, e := range entries {
		if e.IsDir() {
			trees = append(trees, filepath.Join(s.CgroupRoot, e.Name()))
		}
	}
	for _, tree := range trees {
		parent := filepath.Join(tree, s.CgroupParent)
		_ = filepath.WalkDir(parent, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && p != parent {
				snap["cgroup"][p] = 1
			}
			return nil
		})
	}
}

func (snap Snapshot) mounts(prefixes []string) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if point, source, ok := parseMount(sc.Text()); ok && (match(prefixes, point) || match(prefixes, source)) {
			snap["mount"][point+" from "+source]++
		}
	}
}

// parseMount returns mount point and source of a line of mountinfo.
func parseMount(line string) (point, source string, ok bool) {
	left, right, ok := strings.Cut(line, " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if !ok || len(l) < 5 || len(r) < 2 {
		return "", "", false
	}
	return l[4], r[1], true
}

func (snap Snapshot) netns(prefixes []string) {
	for _, dir := range []string{"/run/netns", "/var/run/netns"} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if match(prefixes, e.Name()) {
				snap["netns"][e.Name()] = 1
			}
		}
	}
}

// match: nil takes all.
func match(prefixes []string, s string) bool {
	return prefixes == nil || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}

// processes lists those whose command line matches, and the zombies among the
// children of this process.
func (snap Snapshot) processes(contain []string) {
	entries, _ := os.ReadDir("/proc")
	self := strconv.Itoa(os.Getpid())
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		if stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat")); err == nil {
			if state, parent, ok := parseStat(string(stat)); ok && state == "Z" && parent == self {
				snap["zombie"][e.Name()] = 1
			}
		}
		cmd, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		line := strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
		if slices.ContainsFunc(contain, func(c string) bool { return strings.Contains(line, c) }) {
			snap["process"][e.Name()+" "+line] = 1
		}
	}
}

// parseStat returns state and parent of a line of /proc/<pid>/stat.
func parseStat(line string) (state, parent string, ok bool) {
	i := strings.LastIndexByte(line, ')')
	if i < 0 {
		return "", "", false
	}
	f := strings.Fields(line[i+1:])
	if len(f) < 2 {
		return "", "", false
	}
	return f[0], f[1], true
}

// descriptors counts this process's own, by what they are: numbers and inodes
// differ from one look to the next.
func (snap Snapshot) descriptors() {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err != nil || strings.HasPrefix(target, "/proc/") && strings.HasSuffix(target, "/fd") {
			continue
		}
		if kind, _, ok := strings.Cut(target, ":["); ok && kind != "anon_inode" {
			target = kind
		}
		snap["fd"][target]++
	}
}
