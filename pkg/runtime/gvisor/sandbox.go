package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/starter"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/boot"
)

// Sandbox implements runtime.Sandbox.
type Sandbox struct {
	r       *Runtime
	id, dir string
	cg      cgroup
	control string
	// proc is gVisor's sentry, process 1 of the PID namespace that all processes
	// of the guest are in. gofer is nil for an image.
	proc, gofer *process
	// dials holds a place for each Dial that asks gVisor.
	dials chan struct{}

	// done is closed by the watcher, which sets exit before.
	done chan struct{}
	exit runtime.Exit

	// destroying lets one Destroy at a time through; erased is under it.
	destroying sync.Mutex
	erased     bool

	// pausing lets one Pause, Resume or Checkpoint at a time through; limit is under it.
	pausing sync.Mutex
	// limit is what the sandbox's memory is to be limited to again, in bytes; 0: it is.
	limit int64

	mu sync.Mutex
	// resumed is closed when the sandbox goes on; nil: it is not paused.
	resumed chan struct{}
	// killed: the end is our doing.
	killed bool
	// stopAsking ends the watcher's call to gVisor.
	stopAsking context.CancelFunc
	// gone: the runtime has let go of the sandbox.
	gone bool
}

var _ runtime.Sandbox = (*Sandbox)(nil)

// ID implements runtime.Sandbox.
func (s *Sandbox) ID() string { return s.id }

// Done implements runtime.Sandbox.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// Exit implements runtime.Sandbox. Before the end it is zero.
func (s *Sandbox) Exit() runtime.Exit {
	select {
	case <-s.done:
		return s.exit
	default:
		return runtime.Exit{}
	}
}

// Stats implements runtime.Sandbox. Pids counts threads of this machine, those of
// gVisor itself (about 20) among them.
func (s *Sandbox) Stats(context.Context) (runtime.Stats, error) {
	st, err := s.cg.stats()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return runtime.Stats{}, fmt.Errorf("stats of sandbox %s: %w", s.id, runtime.ErrNotFound)
	}
	if err != nil {
		return runtime.Stats{}, fmt.Errorf("stats of sandbox %s: %w", s.id, err)
	}
	st.DiskBytes = diskBytes(s.proc.PID, s.r.filestore(s.id))
	return st, nil
}

// Foreground implements runtime.Sandbox. What can't be written leaves the sandbox slow
// on a busy machine, and is logged.
func (s *Sandbox) Foreground() {
	if err := s.cg.weigh(weightShared); err != nil {
		s.r.cfg.Logger.Warn("a sandbox stays in the background", "sandbox", s.id, "err", err)
	}
}

// Destroy implements runtime.Sandbox. If ctx ends first, the sandbox is dying but
// may still hold things; call again.
func (s *Sandbox) Destroy(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.destroying.Lock()
	defer s.destroying.Unlock()
	if s.erased {
		return nil
	}
	s.mu.Lock()
	s.killed = true
	gone := s.gone
	s.mu.Unlock()
	if gone {
		return fmt.Errorf("destroy sandbox %s: the runtime is closed", s.id)
	}
	if err := s.proc.kill(); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", s.id, err)
	}
	select {
	case <-s.done:
	case <-ctx.Done():
		return fmt.Errorf("destroy sandbox %s: %w", s.id, ctx.Err())
	}
	if err := s.r.release(ctx, s); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", s.id, err)
	}
	s.closeProcesses()
	s.erased = true
	return nil
}

// letGo ends the watcher and leaves the sandbox running.
func (s *Sandbox) letGo() {
	s.mu.Lock()
	s.gone = true
	if s.stopAsking != nil {
		s.stopAsking()
	}
	s.mu.Unlock()
	s.closeProcesses()
}

func (s *Sandbox) closeProcesses() {
	s.proc.close()
	if s.gofer != nil {
		s.gofer.close()
	}
}

func (s *Sandbox) record() record {
	return record{ID: s.id, Sandbox: *s.proc, Gofer: s.gofer, Control: s.control}
}

// watch starts the goroutine that waits for the sandbox's end.
func (r *Runtime) watch(s *Sandbox) {
	r.watchers.Go(func() {
		ws, told := s.askExit()
		if err := s.proc.wait(context.Background()); err != nil {
			// The runtime was closed; nothing has ended.
			return
		}
		hostWS, ours := r.reap(s.proc)
		s.mu.Lock()
		killed := s.killed
		s.mu.Unlock()
		kills, err := s.cg.oomKills()
		if err != nil {
			r.cfg.Logger.Warn("can't tell whether a sandbox ran out of memory", "sandbox", s.id, "error", err)
		}
		s.exit = judge(ending{guest: ws, guestKnown: told, host: hostWS, hostKnown: ours, killed: killed, oomKills: kills})
		if s.exit.Err != nil {
			r.cfg.Logger.Error("sandbox broke", "sandbox", s.id, "error", s.exit.Err)
		}
		close(s.done)
	})
}

// askExit waits for process 1's end by asking gVisor, which alone knows how it
// ended. It fails when the sandbox ends as a whole.
func (s *Sandbox) askExit() (ws unix.WaitStatus, ok bool) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		return 0, false
	}
	s.stopAsking = cancel
	s.mu.Unlock()
	cid := starter.ContainerID
	err := call(ctx, s.control, boot.ContMgrWait, &cid, nil, &ws)
	return ws, err == nil
}

// ending is what is known about how a sandbox ended.
type ending struct {
	// guest is the status of process 1, host that of gVisor's process: a child of
	// the starter's, unless adopted.
	guest, host           unix.WaitStatus
	guestKnown, hostKnown bool
	// killed: by Destroy.
	killed   bool
	oomKills int64
}

// judge says how a sandbox ended.
func judge(e ending) runtime.Exit {
	// At the memory limit the kernel kills gVisor's process or one that holds the
	// guest's memory; either way process 1 has no say.
	hostKilled := !e.guestKnown && (!e.hostKnown || e.host.Signaled())
	guestKilled := e.guestKnown && e.guest.Signaled() && e.guest.Signal() == unix.SIGKILL
	switch {
	case e.oomKills > 0 && !e.killed && (hostKilled || guestKilled):
		return runtime.Exit{Code: 137, Signal: "SIGKILL", OOM: true}
	case e.guestKnown:
		return exitOf(e.guest)
	case e.killed:
		return runtime.Exit{Code: 137, Signal: "SIGKILL"}
	case e.hostKnown && e.host.Exited():
		// Process 1 was faster than the question. gVisor ends with its status.
		return runtime.Exit{Code: e.host.ExitStatus()}
	case e.hostKnown:
		return runtime.Exit{Code: 128 + int(e.host.Signal()), Signal: unix.SignalName(e.host.Signal()),
			Err: fmt.Errorf("gVisor's process was killed by %s", unix.SignalName(e.host.Signal()))}
	}
	return runtime.Exit{Code: 137, Signal: "SIGKILL", Err: errors.New("gVisor's process is gone")}
}

func exitOf(ws unix.WaitStatus) runtime.Exit {
	if ws.Signaled() {
		return runtime.Exit{Code: 128 + int(ws.Signal()), Signal: unix.SignalName(ws.Signal())}
	}
	return runtime.Exit{Code: ws.ExitStatus()}
}
