package platform

import (
	"bufio"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Left says what of a state folder's sandboxes is still on the machine: processes
// and mounts that name the folder. "" if nothing is.
func Left(dir string) string {
	var left []string
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil || e.Name() == strconv.Itoa(os.Getpid()) {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if line := strings.ReplaceAll(string(raw), "\x00", " "); err == nil && strings.Contains(line, dir+"/") {
			left = append(left, "process "+e.Name()+" "+line)
		}
	}
	if f, err := os.Open("/proc/self/mountinfo"); err == nil {
		defer func() { _ = f.Close() }()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if strings.Contains(sc.Text(), dir+"/") {
				left = append(left, "mount "+sc.Text())
			}
		}
	}
	return strings.Join(left, "; ")
}

// CgroupParent is the cgroup, below each tree of cgroups, in which a node with
// this state folder keeps those of its sandboxes.
func CgroupParent(stateDir string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(filepath.Join(stateDir, "sandboxes")))
	return "sirocco-" + strings.ToLower(hex8(h.Sum32()))
}

func hex8(n uint32) string {
	s := strconv.FormatUint(uint64(n), 16)
	return strings.Repeat("0", 8-len(s)) + s
}
