package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// Config shapes a node-agent.
type Config struct {
	// Runtime is "gvisor" or "sim".
	Runtime string
	// Listen is the address of the data listener, Advertise what relays dial;
	// empty: the address that Listen has got.
	Listen, Advertise string
	// StateDir holds what must survive the agent and takes room: images, kept output,
	// what sandboxes write. What is small and ends with the machine is in
	// rundir.Of.
	StateDir string
	// Runsc, Supervisor and Base are the programs of a sandbox; see `make build`.
	Runsc, Supervisor, Base string
	// ImageDir may be shared by all agents of a machine; empty: in StateDir.
	ImageDir string
	// CPUMillis, MemoryBytes, DiskBytes and Sandboxes are what the node offers;
	// zero: what the machine has, with a part kept for itself.
	CPUMillis, MemoryBytes, DiskBytes int64
	Sandboxes                         int
	// Starts is how many sandboxes are started at a time; zero: one more than
	// the machine has processors, or with simulated ones any number.
	Starts int
	// PoolBytes is the memory that warm sandboxes may take, of what sandboxes
	// leave free; zero: an eighth of the memory offered, with simulated ones none;
	// negative: none. PoolAge is how long one may stay warm.
	PoolBytes int64
	PoolAge   time.Duration
	// NetworkSlots is how many network slots are kept ready.
	NetworkSlots int
	// PrivateRegistries may have loopback or private addresses.
	PrivateRegistries []string
	// SandboxCIDR is the range that sandboxes' addresses come from, SandboxDNS
	// the resolvers they may use, Uplink the only interface that they leave by;
	// empty: chosen by looking at the machine.
	SandboxCIDR string
	SandboxDNS  []string
	Uplink      string
	// Deny are further ranges that no sandbox may reach, such as public addresses
	// of the control plane.
	Deny []string
	// EvictionNotice is how long a sandbox is told before it is evicted.
	EvictionNotice time.Duration
	// LogBytes is how much of a command's output is kept after its sandbox is
	// gone, for each of the two outputs; LogAge is how long.
	LogBytes int64
	LogAge   time.Duration
	// SimStart is the time that a simulated sandbox takes to start; SimFailures
	// the share of starts that fail.
	SimStart    time.Duration
	SimFailures float64
	// Faults: do what `sirocco fault` asks for.
	Faults bool
	// Simulation is the machine of a simulated node; nil: one of its own.
	Simulation *Simulation
}

// Flags adds the agent's flags, with the defaults.
func (c *Config) Flags(fs *pflag.FlagSet) {
	bin := programDir()
	fs.StringVar(&c.Runtime, "runtime", "gvisor", "what isolates sandboxes: gvisor, or sim (nothing runs; for tests of the control plane)")
	fs.StringVar(&c.Listen, "listen", "127.0.0.1:7101", "address of the data listener (mutual TLS)")
	fs.StringVar(&c.Advertise, "advertise", "", "address at which relays reach the data listener (default: that of --listen)")
	fs.StringVar(&c.StateDir, "state-dir", "/var/lib/sirocco/node", "folder for images, kept output and what sandboxes write; it must survive a restart, as /run/sirocco must until the machine restarts")
	fs.StringVar(&c.ImageDir, "image-dir", "", "folder for images, which agents of one machine may share (default: in --state-dir)")
	fs.StringVar(&c.Runsc, "runsc", filepath.Join(bin, "runsc"), "the runsc that was built with this agent")
	fs.StringVar(&c.Supervisor, "guest-init", filepath.Join(bin, "guest", "init"), "the supervisor that runs in each sandbox")
	fs.StringVar(&c.Base, "guest-base", filepath.Join(bin, "guest", "base"), "the userland of the base image")
	fs.Int64Var(&c.CPUMillis, "cpu-millis", 0, "CPU offered, in thousandths of a core (0: four times what the machine has)")
	fs.Int64Var(&c.MemoryBytes, "memory-bytes", 0, "memory offered, in bytes (0: four fifths of the machine's)")
	fs.Int64Var(&c.DiskBytes, "disk-bytes", 0, "disk offered, in bytes (0: what is free under --state-dir)")
	fs.IntVar(&c.Sandboxes, "sandboxes", 0, "how many sandboxes at most (0: one for each 12 MiB of memory offered and each 27 processes that the kernel allows, at most 4000)")
	fs.IntVar(&c.Starts, "starts", 0, "how many sandboxes are started at a time; the others wait their turn (0: one more than there are processors)")
	fs.Int64Var(&c.PoolBytes, "pool-memory-bytes", 0, "memory that warm sandboxes may take, in bytes (0: an eighth of the memory offered, none with simulated ones; -1: none)")
	fs.DurationVar(&c.PoolAge, "pool-age", time.Hour, "how long a sandbox may stay warm")
	fs.IntVar(&c.NetworkSlots, "network-slots", 32, "network slots kept ready")
	fs.StringSliceVar(&c.PrivateRegistries, "private-registries", nil, "registries (host or host:port) that may have a loopback or private address")
	fs.StringVar(&c.SandboxCIDR, "sandbox-cidr", "", "private range that sandboxes' addresses come from (default: a free /18)")
	fs.StringSliceVar(&c.SandboxDNS, "sandbox-dns", nil, "IPv4 resolvers that sandboxes may use (default: this machine's)")
	fs.StringVar(&c.Uplink, "uplink", "", "the only interface by which sandboxes' packets leave (default: as routed)")
	fs.StringSliceVar(&c.Deny, "deny-cidrs", nil, "further ranges that no sandbox may reach, such as public addresses of the control plane")
	fs.DurationVar(&c.EvictionNotice, "eviction-notice", 30*time.Second, "how long a sandbox is told before it is evicted")
	fs.Int64Var(&c.LogBytes, "log-bytes", 1<<20, "how much of a command's output is kept after its sandbox is gone, for each output")
	fs.DurationVar(&c.LogAge, "log-age", time.Hour, "how long it is kept")
	fs.DurationVar(&c.SimStart, "sim-start", 2*time.Millisecond, "with --runtime sim: time that a start takes")
	fs.BoolVar(&c.Faults, "faults", false, "be slow and fail when `sirocco fault` asks for it: for trying out what happens then")
	fs.Float64Var(&c.SimFailures, "sim-failures", 0, "with --runtime sim: share of starts that fail, 0 to 1")
}

// complete fills in what the machine decides.
func (c Config) complete() (Config, error) {
	if c.Runtime != "gvisor" && c.Runtime != "sim" {
		return c, fmt.Errorf("runtime %q: want gvisor or sim", c.Runtime)
	}
	if !filepath.IsAbs(c.StateDir) {
		return c, fmt.Errorf("state-dir %q: want an absolute path", c.StateDir)
	}
	if c.ImageDir == "" {
		c.ImageDir = filepath.Join(c.StateDir, "images")
	}
	if c.CPUMillis == 0 {
		// Sandboxes wait most of the time: what they ask for is not what they use.
		c.CPUMillis = int64(runtime.NumCPU()) * 4000
	}
	if c.MemoryBytes == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return c, fmt.Errorf("read the machine's memory: %w", err)
		}
		c.MemoryBytes = int64(info.Totalram) * int64(info.Unit) / 5 * 4 //nolint:gosec // memory sizes fit
	}
	if c.DiskBytes == 0 {
		if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
			return c, fmt.Errorf("make the state folder: %w", err)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(c.StateDir, &fs); err != nil {
			return c, fmt.Errorf("read the free disk under %s: %w", c.StateDir, err)
		}
		c.DiskBytes = int64(fs.Bavail) * fs.Bsize //nolint:gosec // disk sizes fit
	}
	if c.Starts == 0 {
		c.Starts = runtime.NumCPU() + 1
		if c.Runtime == "sim" {
			c.Starts = 1 << 20
		}
	}
	if c.PoolBytes == 0 && c.Runtime != "sim" {
		c.PoolBytes = c.MemoryBytes / 8
	}
	most := 4000
	if c.Runtime != "sim" {
		if room, err := roomOfProcesses(); err == nil {
			most = min(most, room)
		}
	}
	if c.Sandboxes == 0 {
		c.Sandboxes = int(min(c.MemoryBytes/(12<<20), int64(most)))
	}
	return c, nil
}

// programDir is where this program lies, and its siblings with it.
func programDir() string {
	self, err := os.Executable()
	if err != nil {
		return "bin"
	}
	return filepath.Dir(self)
}
