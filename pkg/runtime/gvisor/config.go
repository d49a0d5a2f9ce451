package gvisor

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/pin"
	gvlog "gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"
)

// Version is what Runtime.Version returns, and what runsc must say its version is.
const Version = pin.Version

// DefaultDiskBytes limits what a sandbox may write to its root file system when
// its Resources say nothing.
const DefaultDiskBytes = 1 << 30

// maxStateDir keeps a sandbox's control socket below the 108 bytes that a unix
// socket's path may have: beyond them gVisor would put it somewhere else.
const maxStateDir = 60

// Config configures a Runtime.
type Config struct {
	// RunscPath is the runsc that was built from this repository.
	RunscPath string
	// StateDir holds a folder per sandbox, of small files that need not outlive the
	// machine. It must be absolute, at most 60 bytes long, and used by one Runtime at a
	// time, which holds a lock on it.
	StateDir string
	// DiskDir is where what sandboxes write is kept, in files without a name: on a file
	// system with room for that. Default: StateDir.
	DiskDir string
	// CgroupParent is the cgroup (below CgroupRoot) that holds those of the
	// sandboxes. Sweep takes what it finds there for its own. Default: a name
	// derived from StateDir.
	CgroupParent string
	// CgroupRoot is where cgroups are mounted. Default: /sys/fs/cgroup.
	CgroupRoot string
	// DiskBytes is the disk limit of a sandbox that states none. Default:
	// DefaultDiskBytes.
	DiskBytes int64
	// Logger receives what the runtime has to say. Default: nothing is logged.
	Logger *slog.Logger
	// Debug keeps the output of gVisor and of process 1 in the sandbox's folder
	// (it goes when the sandbox does) and sends gVisor's own log to Logger.
	Debug bool
}

// withDefaults checks c without touching the machine.
func (c Config) withDefaults() (Config, error) {
	if c.RunscPath == "" {
		return c, errors.New("gvisor: Config.RunscPath is not set")
	}
	if !filepath.IsAbs(c.StateDir) {
		return c, fmt.Errorf("gvisor: Config.StateDir %q is not an absolute path", c.StateDir)
	}
	c.StateDir = filepath.Clean(c.StateDir)
	c.DiskDir = cmp.Or(c.DiskDir, c.StateDir)
	if !filepath.IsAbs(c.DiskDir) {
		return c, fmt.Errorf("gvisor: Config.DiskDir %q is not an absolute path", c.DiskDir)
	}
	if len(c.StateDir) > maxStateDir {
		return c, fmt.Errorf("gvisor: Config.StateDir %q is longer than %d bytes, which a unix socket in it could not be reached by", c.StateDir, maxStateDir)
	}
	if c.CgroupRoot == "" {
		c.CgroupRoot = "/sys/fs/cgroup"
	}
	if c.CgroupParent == "" {
		h := fnv.New32a()
		_, _ = io.WriteString(h, c.StateDir)
		c.CgroupParent = fmt.Sprintf("sirocco-%08x", h.Sum32())
	}
	if !filepath.IsLocal(c.CgroupParent) {
		return c, fmt.Errorf("gvisor: Config.CgroupParent %q is not a path below the cgroup root", c.CgroupParent)
	}
	if c.DiskBytes <= 0 {
		c.DiskBytes = DefaultDiskBytes
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// runscFlags returns gVisor's own configuration for the sandbox in dir.
//
// gVisor is told to leave cgroups alone: package launch joins them, for the
// reasons given there.
func (c Config) runscFlags(dir string, disk int64) (*config.Config, error) {
	fs := flag.NewFlagSet("runsc", flag.ContinueOnError)
	config.RegisterFlags(fs)
	set := map[string]string{
		"root":                    dir,
		"platform":                "systrap",
		"network":                 "sandbox",
		"file-access":             "exclusive",
		"file-access-mounts":      "exclusive",
		"overlay2":                fmt.Sprintf("root:dir=%s,size=%d", dir, disk),
		"host-uds":                "none",
		"host-fifo":               "none",
		"character-device-policy": "emulated-only",
		"rootless":                "false",
		"ignore-cgroups":          "true",
		"host-settings":           "ignore",
		"net-raw":                 "false",
		"allow-flag-override":     "false",
		"gofer-network-namespace": "new",
		"cpu-num-from-quota":      "true",
		"watchdog-action":         "log",
	}
	if c.Debug {
		// Not the flag "debug": it would connect gVisor to this program's output.
		set["debug-log"] = filepath.Join(dir, "log") + "/"
	}
	for name, value := range set {
		if err := fs.Set(name, value); err != nil {
			return nil, fmt.Errorf("gvisor: flag %s=%s: %w", name, value, err)
		}
	}
	conf, err := config.NewFromFlags(fs)
	if err != nil {
		return nil, fmt.Errorf("gvisor: configuration: %w", err)
	}
	return conf, nil
}

// linked guards what gVisor's packages keep in variables of their own.
var linked struct {
	mu    sync.Mutex
	runsc string
}

// Link points gVisor's packages at a runsc, for a program that calls them without
// a Runtime. As with Runtimes, it must be the same one throughout a program.
func Link(runsc string) error {
	if err := requireRoot(); err != nil {
		return err
	}
	return Config{RunscPath: runsc, Logger: slog.New(slog.DiscardHandler)}.link()
}

// link points gVisor's packages at the runsc of c. All Runtimes of a program must
// use the same one.
func (c Config) link() error {
	linked.mu.Lock()
	defer linked.mu.Unlock()
	if linked.runsc == c.RunscPath {
		return nil
	}
	if linked.runsc != "" {
		return fmt.Errorf("gvisor: this program already uses the runsc at %s, and can't use %s too", linked.runsc, c.RunscPath)
	}
	if err := pin.Check(c.RunscPath); err != nil {
		return fmt.Errorf("gvisor: %w", err)
	}
	specutils.ExePath = c.RunscPath
	gvlog.SetTarget(gvlog.GoogleEmitter{Writer: &gvlog.Writer{Next: logWriter{c.Logger, c.Debug}}})
	gvlog.SetLevel(gvlog.Warning)
	linked.runsc = c.RunscPath
	return nil
}

// logWriter passes gVisor's in-process log on, line by line.
type logWriter struct {
	to    *slog.Logger
	debug bool
}

// Write implements io.Writer.
func (w logWriter) Write(b []byte) (int, error) {
	if w.debug {
		w.to.Debug("gvisor", "line", strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// requireRoot says in one sentence what is missing.
func requireRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("gvisor: sandboxes need root: run this program as root, or use the sim runtime")
	}
	return nil
}
