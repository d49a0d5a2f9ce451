package platform

import (
	"bufio"
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
