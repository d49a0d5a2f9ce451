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

	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/pin"
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
	// Debug keeps the output of gVisor and of process 1, and gVisor's own log, in the
	// sandbox's folder. It goes when the sandbox does.
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

// requireRoot says in one sentence what is missing.
func requireRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("gvisor: sandboxes need root: run this program as root, or use the sim runtime")
	}
	return nil
}
