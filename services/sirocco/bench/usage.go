package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ticksPerSecond is the unit of CPU times in /proc, which Linux fixes for what
// programs see.
const ticksPerSecond = 100

// Usage is what the platform has used of this machine.
type Usage struct {
	// Services is the CPU time of the process of all services, and of the one that
	// starts sandboxes for it.
	Services time.Duration
	// Ended is the CPU time of the processes that they have started and that have
	// ended: runsc and the sandboxes, from their first instruction on.
	Ended time.Duration
	// Sandboxes is the CPU time charged to the sandboxes' cgroups, of living and
	// ended ones.
	Sandboxes time.Duration
	// Client is the CPU time of this program.
	Client time.Duration
	// RSS, Anonymous and Descriptors are the services' process's: resident memory,
	// the part of it that no file backs, in bytes, and open files.
	RSS, Anonymous int64
	Descriptors    int
	// CgroupBytes is the memory charged to the sandboxes' cgroups, Available what
	// the machine has left.
	CgroupBytes, Available int64
}

// Usage reads what the platform uses now.
func (l *Local) Usage() (Usage, error) {
	var u Usage
	var err error
	if u.Services, u.Ended, err = ProcessTimes(l.PID); err != nil {
		return u, err
	}
	for _, child := range childrenOf(l.PID) {
		// One that ends between the look and this is in the times of its parent.
		if own, ended, err := ProcessTimes(child); err == nil {
			u.Services += own
			u.Ended += ended
		}
	}
	if u.Client, _, err = ProcessTimes(os.Getpid()); err != nil {
		return u, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.PID))
	if err != nil {
		return u, fmt.Errorf("look at the platform's process: %w", err)
	}
	u.RSS, u.Anonymous = statusBytes(string(status), "VmRSS"), statusBytes(string(status), "RssAnon")
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", l.PID))
	if err != nil {
		return u, fmt.Errorf("look at the platform's process: %w", err)
	}
	u.Descriptors = len(open)
	for _, dir := range l.cgroups() {
		u.Sandboxes += cgroupCPU(dir)
		u.CgroupBytes += cgroupMemory(dir)
	}
	u.Available = meminfo("MemAvailable")
	return u, nil
}

// childrenOf returns the processes that pid is the parent of.
func childrenOf(pid int) []int {
	var children []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err != nil {
			continue
		}
		if f := statFields(string(raw)); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			children = append(children, child)
		}
	}
	return children
}

// ProcessTimes returns the CPU time of a process, and of its children that have
// ended and their children's.
func ProcessTimes(pid int) (own, children time.Duration, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, fmt.Errorf("look at process %d: %w", pid, err)
	}
	own, children, ok := parseTimes(string(raw))
	if !ok {
		return 0, 0, fmt.Errorf("look at process %d: %q", pid, raw)
	}
	return own, children, nil
}

// statFields returns the fields of a line of /proc/<pid>/stat that follow the name, which
// is in parentheses and may hold anything: state, parent, and so on.
func statFields(line string) []string {
	return strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
}

// parseTimes reads utime, stime, cutime and cstime of a line of /proc/<pid>/stat.
func parseTimes(line string) (own, children time.Duration, ok bool) {
	f := statFields(line)
	if len(f) < 15 {
		return 0, 0, false
	}
	var ticks [4]int64
	for i := range ticks {
		var err error
		if ticks[i], err = strconv.ParseInt(f[11+i], 10, 64); err != nil {
			return 0, 0, false
		}
	}
	unit := time.Second / ticksPerSecond
	return time.Duration(ticks[0]+ticks[1]) * unit, time.Duration(ticks[2]+ticks[3]) * unit, true
}

// statusBytes reads a line of /proc/<pid>/status in bytes; 0 if it is not there.
func statusBytes(status, name string) int64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			var kib int64
			_, _ = fmt.Sscan(rest, &kib)
			return kib << 10
		}
	}
	return 0
}

// meminfo returns a line of /proc/meminfo in bytes; 0 if it is not there.
func meminfo(name string) int64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	return statusBytes(string(raw), name)
}

// cgroupCPU is the CPU time charged to a cgroup and all below it: of version 1 if
// this is the hierarchy that counts it, or of version 2.
func cgroupCPU(dir string) time.Duration {
	if n, ok := readNumber(filepath.Join(dir, "cpuacct.usage")); ok {
		// "cpu" and "cpuacct" may be two names of one hierarchy.
		if info, err := os.Lstat(filepath.Dir(dir)); err != nil || info.Mode()&os.ModeSymlink != 0 {
			return 0
		}
		return time.Duration(n)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return time.Duration(n) * time.Microsecond
		}
	}
	return 0
}

// cgroupMemory is the memory charged to a cgroup and all below it, in bytes.
func cgroupMemory(dir string) int64 {
	for _, name := range []string{"memory.current", "memory.usage_in_bytes"} {
		if n, ok := readNumber(filepath.Join(dir, name)); ok {
			return n
		}
	}
	return 0
}

func readNumber(file string) (int64, bool) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return n, err == nil
}
