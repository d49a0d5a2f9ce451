// Package launch is what a sandbox process does to itself before gVisor runs.
//
// gVisor can do most of it from the process that creates a sandbox, but in ways
// that only suit a command that makes one sandbox and exits:
//
//   - On cgroup v1 the creator joins the sandbox's cgroups, starts the process
//     and goes back. Two creations at once would start each other's processes in
//     the wrong cgroup, and the creator could be killed at a sandbox's memory
//     limit. Here the new process joins by itself.
//   - The sandbox gets the creator's standard input, output and error, taken from
//     the variables of package os. Here they are replaced before anything reads
//     or writes them.
//   - An overlay kept in a file on disk needs a gofer process, which an EROFS root
//     file system has no other use for. Here the file is opened by the process
//     that needs it.
//   - A network namespace that gVisor makes has its loopback device down.
//   - The creator's sockets to other sandboxes are inherited. Here they are closed.
//
// The creator leaves a Plan in the bundle folder; Prepare carries it out, but for the
// joining of cgroups, which package first has done before. Both run before the process
// gives up any right and before any tenant code exists.
package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/launch/first"
	"golang.org/x/sys/unix"
)

// Revision is part of the version of the runsc that is built from this package's
// caller. Raise it with every change to Plan, to what Prepare does, to package starter,
// or to the files that package runscbuild replaces.
const Revision = "sirocco19"

const (
	planFile  = "launch.json"
	errorFile = "launch.err"
)

// Plan says what the processes of one sandbox prepare.
type Plan struct {
	// CgroupProcs are the cgroup.procs files to join, in all processes.
	CgroupProcs []string `json:"-"` // in first.JoinFile
	// Stdio is the file that the sandbox's output goes to. Empty: nowhere.
	Stdio string `json:"stdio,omitempty"`
	// Filestore is the path of the file that keeps what is written to the root
	// file system. It is made and unlinked at once, so that its space is free as
	// soon as the sandbox process ends. Empty: the overlay needs none.
	Filestore string `json:"filestore,omitempty"`
	// Loopback: bring the loopback device of the process's namespace up.
	Loopback bool `json:"loopback,omitempty"`
	// BootFlags are added to the flags of gVisor's boot command, after its own.
	BootFlags []string `json:"boot_flags,omitempty"`
}

// Write leaves the plan in the bundle folder dir.
func (p Plan) Write(dir string) error {
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode launch plan: %w", err)
	}
	if len(p.CgroupProcs) > 0 {
		if err := os.WriteFile(filepath.Join(dir, first.JoinFile), []byte(strings.Join(p.CgroupProcs, "\n")), 0o600); err != nil {
			return fmt.Errorf("write launch plan: %w", err)
		}
	}
	return os.WriteFile(filepath.Join(dir, planFile), b, 0o600)
}

// Prepare carries out the plan that belongs to the command line args, if there is
// one, and returns the command line that gVisor is to see. Any other command line
// comes back as it is.
func Prepare(args []string) ([]string, error) {
	cmd, bundle := first.Parse(args)
	if cmd == "" {
		return args, nil
	}
	b, err := os.ReadFile(filepath.Join(bundle, planFile))
	if errors.Is(err, fs.ErrNotExist) {
		return args, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read launch plan: %w", err)
	}
	var p Plan
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("read launch plan in %s: %w", bundle, err)
	}
	if err := closeStrays(args); err != nil {
		return nil, err
	}
	if err := first.JoinError(); err != nil {
		return nil, err
	}
	if cmd != "boot" {
		return args, nil
	}
	deferGC()
	if err := replaceStdio(args, p.Stdio); err != nil {
		return nil, err
	}
	if p.Loopback {
		if err := loopbackUp(); err != nil {
			return nil, err
		}
	}
	extra := slices.Clone(p.BootFlags)
	if p.Filestore != "" {
		fd, err := openFilestore(p.Filestore)
		if err != nil {
			return nil, err
		}
		extra = append(extra, "--gofer-filestore-fds="+strconv.Itoa(fd))
	}
	// The last argument is the container id; of a flag given twice, the later
	// one counts.
	return slices.Insert(slices.Clone(args), len(args)-1, extra...), nil
}

// startGrowth lets the heap grow to 16 MiB (runtime/debug: 4 MiB for each 100) before
// garbage is collected for the first time; 100 is usual.
const startGrowth = 400

// deferGC keeps the garbage collector quiet while the sandbox starts: with a heap that
// grows from nothing to its size it would collect three times, 7 ms of a processor. From
// the first time on it is as usual, so that a busy sandbox keeps clear of its memory limit.
func deferGC() {
	debug.SetGCPercent(startGrowth)
	collected := new([64]byte)
	runtime.SetFinalizer(collected, func(*[64]byte) { debug.SetGCPercent(100) })
}

// Report leaves err where ReadError finds it.
func Report(args []string, err error) {
	if cmd, bundle := first.Parse(args); cmd != "" {
		_ = os.WriteFile(filepath.Join(bundle, errorFile), []byte(err.Error()), 0o600)
	}
}

// ReadError returns why a process of the bundle folder dir could not carry out its
// plan, or "".
func ReadError(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, errorFile))
	if err != nil {
		return ""
	}
	return string(b)
}

// replaceStdio puts path, or nothing, in place of the files that were inherited
// to become the container's standard input, output and error.
func replaceStdio(args []string, path string) error {
	for i, fd := range stdioFDs(args) {
		name, flags := os.DevNull, unix.O_RDWR
		if i > 0 && path != "" {
			name, flags = path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT
		}
		f, err := unix.Open(name, flags|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return fmt.Errorf("open %s for the sandbox's stdio: %w", name, err)
		}
		err = unix.Dup3(f, fd, 0)
		unix.Close(f)
		if err != nil {
			return fmt.Errorf("replace stdio %d: %w", i, err)
		}
	}
	return nil
}

// stdioFDs returns the descriptors named by --stdio-fds, in order.
func stdioFDs(args []string) []int {
	var fds []int
	for i, a := range args {
		v, ok := strings.CutPrefix(a, "--stdio-fds=")
		if !ok {
			if a != "--stdio-fds" || i+1 >= len(args) {
				continue
			}
			v = args[i+1]
		}
		for _, s := range strings.Split(v, ",") {
			if fd, err := strconv.Atoi(s); err == nil && fd >= 0 {
				fds = append(fds, fd)
			}
		}
	}
	return fds
}

// openFilestore makes the file and takes its name away. The descriptor stays open
// across an exec.
func openFilestore(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return -1, fmt.Errorf("make filestore %s: %w", path, err)
	}
	if err := unix.Unlink(path); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("unlink filestore %s: %w", path, err)
	}
	return fd, nil
}

// loopbackUp sets the loopback device of this process's network namespace up. The
// kernel gives it 127.0.0.1 and ::1 by itself.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}
