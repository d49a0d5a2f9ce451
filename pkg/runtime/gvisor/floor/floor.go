// Package floor measures what nothing that uses gVisor can be faster than: a
// sandbox made by gVisor's own calls, in this process, without limits, overlay
// file, record, network or watcher. Benchmarks print it beside their figures, so
// that the ratio says on any machine what the platform adds.
package floor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/pin"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/sentry/control"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"
)

// Config says what is made.
type Config struct {
	// Runsc is the runsc that was built with this program.
	Runsc string
	// EROFS is the image, Args process 1 of it, which has to stay.
	EROFS string
	Args  []string
	// Command is run in each sandbox and waited for; nil for none.
	Command []string
}

// Cycle is the life of one sandbox.
type Cycle struct {
	// New and Start make it; Exec runs the command until it has ended; Destroy
	// takes everything away.
	New, Start, Exec, Destroy time.Duration
	// CPU is the processors' time of this process and of the sandbox's.
	CPU time.Duration
}

// TTI is the time from nothing until the command has ended.
func (c Cycle) TTI() time.Duration { return c.New + c.Start + c.Exec }

// Measure makes and ends one sandbox. It needs root, and must have the process to
// itself for CPU to be that of the cycle. Nothing of the sandbox stays.
func Measure(cfg Config) (c Cycle, err error) {
	if err := cfg.link(); err != nil {
		return c, err
	}
	dir, err := os.MkdirTemp("", "sirocco-floor-")
	if err != nil {
		return c, fmt.Errorf("measure the floor: %w", err)
	}
	defer os.RemoveAll(dir)
	conf, spec, err := cfg.prepare(dir)
	if err != nil {
		return c, fmt.Errorf("measure the floor: %w", err)
	}
	cpu, err := spent()
	if err != nil {
		return c, err
	}
	clock := time.Now()
	lap := func() time.Duration {
		now := time.Now()
		defer func() { clock = now }()
		return now.Sub(clock)
	}
	box, err := container.New(conf, container.Args{ID: "floor", Spec: spec, BundleDir: dir})
	if err != nil {
		return c, fmt.Errorf("measure the floor: create: %w", err)
	}
	c.New = lap()
	defer func() {
		lap()
		if derr := box.Destroy(); derr != nil {
			err = errors.Join(err, fmt.Errorf("measure the floor: destroy: %w", derr))
		}
		c.Destroy = lap()
		after, serr := spent()
		c.CPU, err = after-cpu, errors.Join(err, serr)
	}()
	if err := box.Start(conf); err != nil {
		return c, fmt.Errorf("measure the floor: start: %w", err)
	}
	c.Start = lap()
	if len(cfg.Command) > 0 {
		if err := cfg.exec(conf, box); err != nil {
			return c, fmt.Errorf("measure the floor: %w", err)
		}
		c.Exec = lap()
	}
	return c, nil
}

// link points gVisor's packages at runsc. They keep its path, and their log's level, in
// variables of their own.
func (cfg Config) link() error {
	if specutils.ExePath == cfg.Runsc {
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("sandboxes need root: run this program as root")
	}
	if err := pin.Check(cfg.Runsc); err != nil {
		return err
	}
	specutils.ExePath = cfg.Runsc
	log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}})
	log.SetLevel(log.Warning)
	return nil
}

// exec runs the command and waits for its end.
func (cfg Config) exec(conf *config.Config, box *container.Container) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	pid, err := box.Execute(conf, &control.ExecArgs{
		Filename: cfg.Command[0], Argv: cfg.Command, WorkingDirectory: "/",
		FilePayload: control.NewFilePayload(map[int]*os.File{0: null, 1: null, 2: null}, nil),
	})
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	status, err := box.WaitPID(pid)
	if err != nil {
		return fmt.Errorf("wait for the command: %w", err)
	}
	if !status.Exited() || status.ExitStatus() != 0 {
		return fmt.Errorf("the command ended with status %#x", uint32(status))
	}
	return nil
}

// prepare writes the bundle.
func (cfg Config) prepare(dir string) (*config.Config, *specs.Spec, error) {
	fs := flag.NewFlagSet("runsc", flag.ContinueOnError)
	config.RegisterFlags(fs)
	for name, value := range map[string]string{"root": dir, "network": "sandbox", "ignore-cgroups": "true"} {
		if err := fs.Set(name, value); err != nil {
			return nil, nil, err
		}
	}
	conf, err := config.NewFromFlags(fs)
	if err != nil {
		return nil, nil, err
	}
	spec := &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: dir},
		Process: &specs.Process{Args: cfg.Args, Cwd: "/", Capabilities: &specs.LinuxCapabilities{}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
		}},
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source": cfg.EROFS, "dev.gvisor.spec.rootfs.type": "erofs", "dev.gvisor.spec.rootfs.overlay": "memory",
		},
	}
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, nil, err
	}
	return conf, spec, os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o600)
}

// spent is the processors' time of this process and of those that it has waited
// for.
func spent() (time.Duration, error) {
	var cpu time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			return 0, fmt.Errorf("measure processors' time: %w", err)
		}
		cpu += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return cpu, nil
}
