package supervisor

import (
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

// waitable blocks until a child has ended and returns its pid without taking
// its status.
func waitable(kind, id int) (int, error) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(kind, id, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		// struct siginfo: signo, errno, code, padding, then si_pid for SIGCHLD.
		return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16))), nil
	}
}

// reapAll waits for every child of process 1, the ones it has started and the
// orphans that the kernel gives it.
func (s *Supervisor) reapAll() {
	for {
		pid, err := waitable(unix.P_ALL, 0)
		s.startMu.Lock()
		if err != nil {
			// There is no child. An orphan can only come from a child, so the
			// next start is early enough.
			if len(s.pids) == 0 {
				s.reap.Wait()
			}
			s.startMu.Unlock()
			continue
		}
		s.reapLocked(pid)
	}
}

// reapOne waits for one child, in a process that has others of its own.
func (s *Supervisor) reapOne(pid int) {
	if _, err := waitable(unix.P_PID, pid); err == nil {
		s.startMu.Lock()
		s.reapLocked(pid)
	}
}

// reapLocked takes the status of a child that has ended and unlocks startMu.
// Signals are sent with startMu held, so that none goes to a new process that
// got the same pid.
func (s *Supervisor) reapLocked(pid int) {
	var status syscall.WaitStatus
	got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
	e := s.pids[pid]
	if err != nil || got != pid {
		e = nil
	} else {
		delete(s.pids, pid)
	}
	s.startMu.Unlock()
	if e != nil {
		e.ended(status)
	}
}

// maxWait is the longest that OpWait may take.
const maxWait = time.Hour

func (s *Supervisor) handleWait(c *guest.Call) {
	id, timeout, ok := c.Wait()
	if !ok {
		return
	}
	var limit <-chan time.Time
	for {
		e, _, _ := s.lookup(id)
		if e == nil {
			if x := s.find(id); x != nil {
				c.Exec(x)
			} else {
				c.Fail(guest.Fail(guest.CodeNotFound, "no exec ", id))
			}
			return
		}
		st := e.OutputState()
		if st.End != nil || timeout <= 0 {
			e.mu.Lock()
			x := e.view()
			e.mu.Unlock()
			c.Exec(x)
			return
		}
		if limit == nil {
			t := time.NewTimer(min(timeout, maxWait))
			defer t.Stop()
			limit = t.C
		}
		select {
		case <-st.Changed:
		case <-limit:
			timeout = 0
		case <-c.Gone():
			c.Fail(guest.Fail(guest.CodeInternal, "client is gone"))
			return
		}
	}
}

func (s *Supervisor) handleList(c *guest.Call) {
	type entry struct {
		seq uint32
		id  string
	}
	s.mu.Lock()
	all := make([]entry, 0, len(s.live)+len(s.done))
	for id, e := range s.live {
		all = append(all, entry{e.seq, id})
	}
	for id, r := range s.done {
		all = append(all, entry{r.seq, id})
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b entry) int { return int(a.seq) - int(b.seq) })
	for _, a := range all {
		if x := s.find(a.id); x != nil && c.SendExec(x) != nil {
			return
		}
	}
	c.Done()
}
