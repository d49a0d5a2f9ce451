package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is a process of this machine, child or not, held by a descriptor that
// can't come to mean another one.
type process struct {
	PID int `json:"pid"`
	// Start is when it started, in clock ticks since boot: with the number, its
	// identity across restarts of the agent.
	Start uint64 `json:"start"`

	file *os.File
}

// openProcess takes hold of pid.
func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{PID: pid, file: os.NewFile(uintptr(fd), "pidfd")}
	// Read after the descriptor is open: if the number had changed hands before,
	// both are of the new process.
	if p.Start, _, err = readStat(pid); err != nil {
		p.file.Close()
		return nil, err
	}
	return p, nil
}

// reopen takes hold of the process that p was recorded as, and fails if it is
// gone.
func (p process) reopen() (*process, error) {
	q, err := openProcess(p.PID)
	if err != nil {
		return nil, err
	}
	if q.Start != p.Start {
		q.file.Close()
		return nil, fmt.Errorf("process %d is another one by now: %w", p.PID, unix.ESRCH)
	}
	return q, nil
}

// kill sends SIGKILL. A process that is gone is no error.
func (p *process) kill() error {
	var err error
	if cerr := p.control(func(fd uintptr) {
		err = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0)
	}); cerr != nil {
		return cerr
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func (p *process) control(f func(fd uintptr)) error {
	rc, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	return rc.Control(f)
}

// wait blocks, without a thread, until the process has ended, its descriptor is
// closed, or ctx is done.
func (p *process) wait(ctx context.Context) error {
	rc, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { p.file.Close() })
	defer stop()
	err = rc.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// reap collects the zombie if it is a child of this program's or of its starter's;
// known says whether it was.
func (r *Runtime) reap(p *process) (ws unix.WaitStatus, known bool) {
	ended := r.starter.Reap(p.PID)
	if ended.Known {
		return ended.Status, true
	}
	// In a container of its own, this program may have inherited it.
	for {
		pid, err := unix.Wait4(p.PID, &ws, unix.WNOHANG, nil)
		if !errors.Is(err, unix.EINTR) {
			return ws, err == nil && pid == p.PID
		}
	}
}

func (p *process) close() { p.file.Close() }

// readStat returns start time and state letter of a process.
func readStat(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, 0, err
	}
	return parseStat(b)
}

// parseStat reads a line of /proc/<pid>/stat. The second field, the name, is in
// parentheses and may hold anything.
func parseStat(b []byte) (start uint64, state byte, err error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, 0, errors.New("malformed process status")
	}
	f := bytes.Fields(b[i+1:])
	if len(f) < 20 {
		return 0, 0, errors.New("malformed process status")
	}
	start, err = strconv.ParseUint(string(f[19]), 10, 64)
	return start, f[0][0], err
}

// bundleProcesses finds the runsc processes whose bundle is in stateDir, by
// sandbox id.
func bundleProcesses(stateDir string) map[string][]int {
	found := map[string][]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if id := bundleOf(pid, stateDir); id != "" {
			found[id] = append(found[id], pid)
		}
	}
	return found
}

// bundleOf returns the id of the sandbox in stateDir that pid was started for.
func bundleOf(pid int, stateDir string) string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return ""
	}
	args := strings.Split(string(b), "\x00")
	if !strings.HasPrefix(filepath.Base(args[0]), "runsc-") {
		return ""
	}
	for i, a := range args {
		dir, ok := strings.CutPrefix(a, "--bundle=")
		if !ok && a == "--bundle" && i+1 < len(args) {
			dir, ok = args[i+1], true
		}
		if ok && filepath.Dir(dir) == stateDir {
			return filepath.Base(dir)
		}
	}
	return ""
}

// killAll ends processes and returns when they are gone, those in their PID
// namespaces included.
func (r *Runtime) killAll(ctx context.Context, pids []int, still func(pid int) bool) error {
	var errs []error
	for _, pid := range pids {
		p, err := openProcess(pid)
		if err != nil {
			continue
		}
		// Between the look that found it and now the number may have changed hands.
		if still(pid) {
			if err := p.kill(); err != nil {
				errs = append(errs, fmt.Errorf("kill %d: %w", pid, err))
			} else if err := p.wait(ctx); err != nil {
				errs = append(errs, fmt.Errorf("wait for %d: %w", pid, err))
			} else {
				r.reap(p)
			}
		}
		p.close()
	}
	return errors.Join(errs...)
}
