// Package server is the process that package starter talks to: gVisor's own calls,
// in a program that does nothing else.
package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/starter"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"
	"gvisor.dev/gvisor/runsc/specutils"
)

// Asked says whether a command line is a starter's.
func Asked(args []string) bool { return len(args) == 2 && args[1] == starter.Command }

// mainThread keeps a starter's first thread for its main function; this has to be done
// while packages initialise.
//
// To start a sandbox, gVisor moves a thread to the sandbox's network namespace and
// then back to that of /proc/self. That is the namespace of the first thread, not of
// the one that moved: were the first thread itself away just then, for a sandbox that
// is being created at the same time, the other would "come back" to that sandbox's
// network and stay. A first thread that never runs anything else is never away.
var _ = mainThread(os.Args)

func mainThread(args []string) struct{} {
	if Asked(args) {
		runtime.LockOSThread()
	}
	return struct{}{}
}

// Serve answers an agent until its end of the socket closes.
func Serve() error {
	socket := os.NewFile(starter.SocketFD, "agent")
	conn, err := net.FileConn(socket)
	socket.Close()
	if err != nil {
		return fmt.Errorf("serve the agent: %w", err)
	}
	if specutils.ExePath, err = os.Readlink("/proc/self/exe"); err != nil {
		return fmt.Errorf("serve the agent: %w", err)
	}
	if err := forgetNetworks(); err != nil {
		return fmt.Errorf("serve the agent: %w", err)
	}
	s := rpc.NewServer()
	if err := s.RegisterName(starter.Service, methods{}); err != nil {
		return err
	}
	s.ServeConn(agent{conn})
	return nil
}

// agent is the connection to the agent. The process ends at once when it does, without
// the calls that are under way, for which net/rpc would wait: the next agent waits for
// this process, and finds and removes what they leave.
type agent struct{ net.Conn }

func (a agent) Read(b []byte) (int, error) {
	n, err := a.Conn.Read(b)
	if err != nil {
		os.Exit(0)
	}
	return n, err
}

// forgetNetworks takes the namespaces that are mounted on the machine out of this
// process's own mounts.
func forgetNetworks() error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("nsfs"))
	if err != nil {
		return err
	}
	for _, m := range mounts {
		err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		// Whoever removes such a namespace on the machine, takes it from here too.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// methods are what the agent calls, each call in a goroutine of its own.
type methods struct{}

// Start is Starter.Start.
func (methods) Start(r starter.Request, started *starter.Started) (err error) {
	defer survive(&err)
	raw, err := os.ReadFile(filepath.Join(r.Dir, "config.json"))
	if err != nil {
		return fmt.Errorf("read container spec: %w", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return fmt.Errorf("read container spec: %w", err)
	}
	conf, err := flags(r)
	if err != nil {
		return err
	}
	c, err := container.New(conf, container.Args{ID: starter.ContainerID, Spec: &spec, BundleDir: r.Dir})
	if err != nil {
		return err
	}
	*started = starter.Started{PID: c.Sandbox.Getpid(), Gofer: c.GoferPid.Load(), Control: c.Sandbox.GetControlSocketPath()}
	// No process of the guest exists yet.
	if err := starter.Volunteer(started.PID); err != nil {
		return err
	}
	if r.Prepare {
		return nil
	}
	return c.Start(conf)
}

// Restore is Starter.Restore. What the one call to Start knew is read again from
// gVisor's own folder, so that nothing is kept of a sandbox that is never restored.
func (methods) Restore(r starter.Restoring, _ *struct{}) (err error) {
	defer survive(&err)
	conf, err := flags(r.Request)
	if err != nil {
		return err
	}
	id := container.FullID{SandboxID: starter.ContainerID, ContainerID: starter.ContainerID}
	c, err := container.Load(r.Request.Dir, id, container.LoadOpts{Exact: true, SkipCheck: true})
	if err != nil {
		return err
	}
	// Direct reads are slower where the files are cached, as they are when they have just
	// come.
	return c.Restore(conf, r.Image, false, r.Background, nil)
}

// survive turns a panic of gVisor's about one sandbox into an error about it.
func survive(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
	}
}

// Reap is Starter.Reap.
func (methods) Reap(pid int, ended *starter.Ended) error {
	for {
		got, err := unix.Wait4(pid, &ended.Status, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			ended.Known = err == nil && got == pid
			return nil
		}
	}
}

// flags returns gVisor's own configuration for a sandbox.
//
// gVisor is told to leave cgroups alone: package launch joins them, for the
// reasons given there.
func flags(r starter.Request) (*config.Config, error) {
	fs := flag.NewFlagSet("runsc", flag.ContinueOnError)
	config.RegisterFlags(fs)
	set := map[string]string{
		"root":                    r.Dir,
		"platform":                "systrap",
		"network":                 "sandbox",
		"file-access":             "exclusive",
		"file-access-mounts":      "exclusive",
		"overlay2":                "root:dir=" + r.Dir + ",size=" + strconv.FormatInt(r.Disk, 10),
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
	if r.Debug {
		// Not the flag "debug": it would connect gVisor to this program's output.
		set["debug-log"] = filepath.Join(r.Dir, "log") + "/"
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
