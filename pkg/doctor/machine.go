package doctor

import (
	"fmt"
	"net"
	"strconv"
	"strings"
)

func ok(check, text string, args ...any) Finding {
	return Finding{Check: check, Text: fmt.Sprintf(text, args...)}
}

func system(h Host) Finding {
	if h.System() != "linux" {
		return Finding{"system", Fail, "this is " + h.System() + ", and sandboxes need Linux", "use a Linux machine or a Linux virtual machine"}
	}
	return ok("system", "Linux %s", h.Release())
}

func root(h Host) Finding {
	if !h.Root() {
		return Finding{"root", Fail, "real sandboxes need root (namespaces, cgroups, network)", "run the same command with sudo, or try the control plane alone with --runtime sim"}
	}
	return ok("root", "running as root")
}

// capability bits of capabilities(7) that driving sandboxes needs.
var needed = []struct {
	bit  uint
	name string
}{
	{1, "DAC_OVERRIDE"}, {6, "SETGID"}, {7, "SETUID"}, {8, "SETPCAP"}, {12, "NET_ADMIN"}, {13, "NET_RAW"},
	{18, "SYS_CHROOT"}, {19, "SYS_PTRACE"}, {21, "SYS_ADMIN"}, {27, "MKNOD"}, {31, "SETFCAP"},
}

func capabilities(h Host) Finding {
	status, err := h.ReadFile("/proc/self/status")
	if err != nil {
		return Finding{"capabilities", Warn, "/proc/self/status can't be read", "mount /proc"}
	}
	for line := range strings.Lines(status) {
		hex, found := strings.CutPrefix(line, "CapEff:")
		if !found {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		if err != nil {
			break
		}
		var missing []string
		for _, c := range needed {
			if set&(1<<c.bit) == 0 {
				missing = append(missing, c.name)
			}
		}
		if len(missing) > 0 {
			return Finding{"capabilities", Fail, "this root lacks the capabilities " + strings.Join(missing, ", "), "in a container, add them (docker run --cap-add …; see deployments/)"}
		}
		return ok("capabilities", "all that are needed")
	}
	return ok("capabilities", "not told by this kernel")
}

func kernel(h Host) Finding {
	major, minor, parsed := release(h.Release())
	switch {
	case !parsed:
		return Finding{"kernel", Warn, fmt.Sprintf("the kernel version %q can't be read", h.Release()), "make sure that it is 5.10 or newer"}
	case major < 4 || major == 4 && minor < 15:
		return Finding{"kernel", Fail, "the kernel " + h.Release() + " is too old for gVisor", "use 5.10 or newer"}
	case major < 5 || major == 5 && minor < 10:
		return Finding{"kernel", Warn, "the kernel " + h.Release() + " is older than what is tested", "use 5.10 or newer"}
	}
	return ok("kernel", "%s", h.Release())
}

func release(s string) (major, minor int, parsed bool) {
	parts := strings.SplitN(s, ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	digits := strings.IndexFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' })
	if digits >= 0 {
		parts[1] = parts[1][:digits]
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return major, minor, err1 == nil && err2 == nil
}

func namespaces(h Host) Finding {
	var missing []string
	for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
		if !h.Exists("/proc/self/ns/" + ns) {
			missing = append(missing, ns)
		}
	}
	if len(missing) > 0 {
		return Finding{"namespaces", Fail, "the kernel has no namespaces of kind " + strings.Join(missing, ", "), "use a kernel built with them"}
	}
	if max, err := h.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(max) == "0" {
		return Finding{"namespaces", Warn, "user namespaces are switched off", "sysctl -w user.max_user_namespaces=15000"}
	}
	return ok("namespaces", "every kind")
}

func ptrace(h Host) Finding {
	scope, err := h.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if err == nil && strings.TrimSpace(scope) == "3" {
		return Finding{"ptrace", Fail, "the kernel forbids ptrace to everybody, and gVisor needs it", "boot with kernel.yama.ptrace_scope below 3"}
	}
	return ok("ptrace", "allowed")
}

// meminfo returns a line of /proc/meminfo, in KiB; 0 if there is none.
func meminfo(h Host, name string) (kib uint64, err error) {
	info, err := h.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(info) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == name+":" {
			return strconv.ParseUint(fields[1], 10, 64)
		}
	}
	return 0, nil
}

func memory(h Host) Finding {
	kib, err := meminfo(h, "MemAvailable")
	switch {
	case err != nil:
		return Finding{"memory", Warn, "/proc/meminfo can't be read", "mount /proc"}
	case kib == 0:
		return ok("memory", "not told by this kernel")
	case kib < 512<<10:
		return Finding{"memory", Warn, fmt.Sprintf("only %d MiB of memory are free", kib>>10), "expect few sandboxes, or end other programs"}
	}
	return ok("memory", "%.1f GiB free", float64(kib)/(1<<20))
}

// How many processes and threads there may be.
const (
	// PIDMax and threadsMax are the files of the kernel that say so.
	PIDMax     = "/proc/sys/kernel/pid_max"
	threadsMax = "/proc/sys/kernel/threads-max"
	// MostPIDs is what PIDMax may be at most, on a machine of 64 bits.
	MostPIDs = 4 << 20
	// ProcessesEach is how many a sandbox takes (measured: 16 while it does nothing, 27
	// with a small server). One that can't start another ends.
	ProcessesEach = 27
)

// Kernel returns a number that the kernel shows in a file. Errors: it does not.
func Kernel(h Host, file string) (int, error) {
	text, err := h.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", file, err)
	}
	return n, nil
}

// Processes returns how many processes and threads the kernel allows. Errors: it does not
// say.
func Processes(h Host) (int, error) {
	pids, err := Kernel(h, PIDMax)
	if err != nil {
		return 0, err
	}
	threads, err := Kernel(h, threadsMax)
	return min(pids, threads), err
}

// processes compares what the kernel allows with what the memory has room for.
func processes(h Host) Finding {
	n, err := Processes(h)
	if err != nil {
		return ok("processes", "not told by this kernel")
	}
	if n < MostPIDs && h.Writable(PIDMax) {
		n, err = Kernel(h, threadsMax) // the node-agent raises the other
	}
	const each = 16 << 10                                                                                     // KiB of a sandbox that does nothing, with some air
	if kib, merr := meminfo(h, "MemTotal"); err == nil && merr == nil && kib/each > uint64(n/ProcessesEach) { //nolint:gosec // the kernel allows more than none
		return Finding{"processes", Warn, fmt.Sprintf("at most %d processes and threads may run, which is about %d sandboxes; there is memory for more", n, n/ProcessesEach), "sysctl -w kernel.pid_max=4194304, and kernel.threads-max if that is less"}
	}
	return ok("processes", "at most %d", n)
}

func files(h Host) Finding {
	if n := h.OpenFiles(); n < 65536 {
		return Finding{"open files", Warn, fmt.Sprintf("at most %d files may be open, which is about %d sandboxes", n, n/16), "ulimit -n 1048576, or LimitNOFILE= of the unit"}
	}
	return ok("open files", "at most %d", h.OpenFiles())
}

func disk(h Host, dir string) Finding {
	bytes, inodes, err := h.Free(dir)
	gib := float64(bytes) / (1 << 30)
	switch {
	case err != nil:
		return Finding{"disk", Fail, fmt.Sprintf("the disk of %s can't be used (%v)", dir, err), "name another folder with --data"}
	case bytes < 1<<30:
		return Finding{"disk", Fail, fmt.Sprintf("the disk of %s has only %.1f GiB free", dir, gib), "free some space, or name a folder on another disk with --data"}
	case inodes < 10_000:
		return Finding{"disk", Fail, fmt.Sprintf("the disk of %s has room for only %d more files", dir, inodes), "remove files, or name a folder on another disk with --data"}
	case bytes < 10<<30:
		return Finding{"disk", Warn, fmt.Sprintf("the disk of %s has %.1f GiB free", dir, gib), "images and events need 10 GiB and more; free some space"}
	}
	return ok("disk", "%.0f GiB free for %s", gib, dir)
}

// ports takes a port that a sirocco has for good, because doctor may run beside
// up, unless it is to be alone.
func ports(h Host, w Want) []Finding {
	var findings []Finding
	for _, p := range w.Ports {
		owner, err := h.Listen(p.Address)
		_, port, _ := net.SplitHostPort(p.Address)
		f := ok("port "+port, "free for %s", p.Use)
		switch {
		case err == nil:
		case strings.HasPrefix(owner, "sirocco (") && !w.Alone:
			f = ok("port "+port, "in use for %s by %s", p.Use, owner)
		case owner != "":
			f.Status, f.Text, f.Fix = Fail, fmt.Sprintf("port %s of %s is taken by %s", port, p.Use, owner), "end that program, or choose another with "+p.Flag
		default:
			f.Status, f.Text, f.Fix = Fail, fmt.Sprintf("%s can't be listened on for %s (%v)", p.Address, p.Use, err), "choose another with "+p.Flag
		}
		findings = append(findings, f)
	}
	return findings
}
