package gvisor

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	goruntime "runtime"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/starter"
)

// shmBytes is the size of /dev/shm, as docker has it. It counts as memory.
const shmBytes = 64 << 20

// capabilities are those of a container of docker's. gVisor takes CAP_NET_RAW out
// again, as net-raw is off.
func capabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID",
		"CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP",
		"CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

// checkSpec refuses what can't become a sandbox. It looks at the root file
// system, so that its errors are ErrRootfs.
func checkSpec(s runtime.Spec) error {
	if s.ID == "" || s.ID == "." || s.ID == ".." || strings.ContainsAny(s.ID, "/\x00") || len(s.ID) > 32 {
		return fmt.Errorf("gvisor: %q can't be a sandbox id", s.ID)
	}
	if len(s.Args) == 0 {
		return fmt.Errorf("gvisor: sandbox %s has no command", s.ID)
	}
	r := s.Rootfs
	switch {
	case (r.EROFS == "") == (r.Dir == ""):
		return fmt.Errorf("%w: need either an EROFS image or a folder", runtime.ErrRootfs)
	case r.EROFS != "" && len(r.Binds) > 0:
		return fmt.Errorf("%w: an EROFS image takes no binds", runtime.ErrRootfs)
	case r.EROFS != "":
		return checkEROFS(r.EROFS)
	}
	if fi, err := os.Stat(r.Dir); err != nil || !fi.IsDir() || !filepath.IsAbs(r.Dir) {
		return fmt.Errorf("%w: %s is not a folder", runtime.ErrRootfs, r.Dir)
	}
	for _, b := range r.Binds {
		if _, err := os.Stat(b.Source); err != nil {
			return fmt.Errorf("%w: bind source: %v", runtime.ErrRootfs, err)
		}
		// The gofer would make a missing mount point, in the folder itself.
		if !path.IsAbs(b.Target) || path.Clean(b.Target) != b.Target {
			return fmt.Errorf("%w: bind target %q is not a clean absolute path", runtime.ErrRootfs, b.Target)
		}
		if _, err := os.Lstat(filepath.Join(r.Dir, b.Target)); err != nil {
			return fmt.Errorf("%w: bind target: %v", runtime.ErrRootfs, err)
		}
	}
	return nil
}

// checkEROFS looks for the magic number, so that a file that is none fails with a
// reason before a process is started for it.
func checkEROFS(name string) error {
	if !filepath.IsAbs(name) {
		return fmt.Errorf("%w: %q is not an absolute path", runtime.ErrRootfs, name)
	}
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("%w: %v", runtime.ErrRootfs, err)
	}
	defer f.Close()
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 1024); err != nil || magic != [4]byte{0xe2, 0xe1, 0xf5, 0xe0} {
		return fmt.Errorf("%w: %s is not an EROFS image", runtime.ErrRootfs, name)
	}
	return nil
}

// ociSpec translates s. Everything in it that gVisor treats as an instruction
// (annotations, namespaces, mounts, capabilities) is set here and nowhere else.
func ociSpec(s runtime.Spec, dir string, disk int64) *specs.Spec {
	caps := capabilities()
	o := &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Args: s.Args,
			Env:  s.Env,
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: caps, Effective: caps, Permitted: caps,
			},
			Rlimits: rlimits(s.Resources),
		},
		Root:     &specs.Root{Path: s.Rootfs.Dir},
		Hostname: s.Hostname,
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts"},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shmBytes)}},
			// gVisor covers an empty /tmp by one in memory. With something in it,
			// it stays part of the root file system: on disk, within its limit.
			{Destination: "/tmp/.X11-unix", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=4096"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: network(s.NetNS)},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	for _, b := range s.Rootfs.Binds {
		o.Mounts = append(o.Mounts, specs.Mount{Destination: b.Target, Source: b.Source, Type: "bind", Options: []string{"rbind", "ro"}})
	}
	if s.Rootfs.EROFS != "" {
		o.Root.Path = filepath.Join(dir, emptyDir)
		o.Annotations = map[string]string{
			"dev.gvisor.spec.rootfs.source":  s.Rootfs.EROFS,
			"dev.gvisor.spec.rootfs.type":    "erofs",
			"dev.gvisor.spec.rootfs.overlay": "dir=" + dir,
			"dev.gvisor.spec.rootfs.options": fmt.Sprintf("size=%d", disk),
		}
	}
	return o
}

// network names a network namespace for the starter; empty stays empty, for a new one.
func network(path string) string {
	if path == "" {
		return ""
	}
	return starter.NetNS(path)
}

// rlimits hold inside the sandbox. RLIMIT_NPROC counts the processes and threads
// of a user; raising it, or ignoring it, takes capabilities that no process of the
// tenant has.
func rlimits(r runtime.Resources) []specs.POSIXRlimit {
	l := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 16, Hard: 1 << 16}}
	if r.Pids > 0 {
		l = append(l, specs.POSIXRlimit{Type: "RLIMIT_NPROC", Soft: uint64(r.Pids), Hard: uint64(r.Pids)})
	}
	return l
}

// bootFlags tell gVisor what to show as the machine's size, as it does not look
// at the cgroups itself.
func bootFlags(r runtime.Resources) []string {
	cpus := goruntime.NumCPU()
	var f []string
	if r.CPUMillis > 0 {
		// Programs that see one processor leave out locks that threads of gVisor's
		// still need; gVisor itself never goes below two.
		cpus = min(cpus, max(2, int((r.CPUMillis+999)/1000)))
		f = append(f, fmt.Sprintf("--cpu-quota=%d", cpuQuota(r.CPUMillis)), fmt.Sprintf("--cpu-period=%d", cpuPeriod))
	}
	f = append(f, fmt.Sprintf("--cpu-num=%d", cpus))
	if r.MemoryBytes > 0 {
		f = append(f, fmt.Sprintf("--total-memory=%d", r.MemoryBytes))
	}
	return f
}
