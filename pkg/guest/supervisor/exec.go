package supervisor

import (
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

// exitTimeout is the exit code of a process that its timeout killed.
const exitTimeout = 124

// ttyDrain is how long the end of a process with a terminal waits for the rest
// of its output: the kernel hands that on after the process is gone.
const ttyDrain = 100 * time.Millisecond

// exec is a process that runs, or has ended while its children still hold its
// output.
type exec struct {
	s     *Supervisor
	seq   uint32
	input *input

	mu       sync.Mutex
	exec     guest.Exec // sizes are filled in by view
	out      [2]output
	ord      order
	open     int // outputs that are not at their end
	timer    *time.Timer
	timedOut bool
	reaped   bool // the process has been waited for: its pid may be another's
	status   syscall.WaitStatus
	changed  chan struct{} // made when somebody waits; closed at a change
}

// path returns where something of an exec is kept: 'o' and 'e' for the outputs,
// 'r' for the order log.
func (s *Supervisor) path(seq uint32, what byte) string {
	return s.cfg.Dir + "/" + string(what) + strconv.FormatUint(uint64(seq), 10)
}

// pump takes an output until its end. It blocks without holding a buffer.
func (e *exec) pump(i guest.Stream, f *os.File) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Read(func(fd uintptr) bool {
			e.mu.Lock()
			defer e.mu.Unlock()
			_, end := e.take(i, int(fd), 1<<62)
			return end
		})
	}
	e.mu.Lock()
	e.out[i].pipe = nil
	e.open--
	last := e.open == 0
	if last && e.reaped && e.exec.End == nil {
		e.publish()
	}
	ended := e.exec.End != nil
	e.mu.Unlock()
	if !e.exec.TTY || e.input == nil {
		_ = f.Close()
	} else {
		e.input.close(false)
	}
	if last && ended {
		e.s.retire(e)
	}
}

// take reads what is there, at most about limit bytes, and keeps it. end is set
// at the end of the output. The caller holds e.mu, which orders those who read.
func (e *exec) take(i guest.Stream, fd, limit int) (n int, end bool) {
	buf := readBufs.Get().(*[readBuf]byte)
	defer readBufs.Put(buf)
	for n < limit {
		m, err := syscall.Read(fd, buf[:])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return n, false
		case err != nil || m == 0:
			// EIO: the last one that had the terminal open has closed it.
			return n, true
		}
		kept := e.out[i].keep(e.s, e, i, buf[:m])
		e.ord.add(e.s, e, i, int64(kept))
		e.wake()
		n += m
	}
	return n, false
}

// wake tells those who follow. The caller holds e.mu.
func (e *exec) wake() {
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
}

// ended is called once, when the process has been waited for.
func (e *exec) ended(status syscall.WaitStatus) {
	e.mu.Lock()
	e.reaped = true
	e.status = status
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	switch {
	case e.open > 0 && e.exec.TTY:
		time.AfterFunc(ttyDrain, func() {
			e.mu.Lock()
			if e.exec.End == nil {
				e.publish()
			}
			e.mu.Unlock()
		})
	default:
		for i := range e.out {
			if f := e.out[i].pipe; f != nil {
				if raw, err := f.SyscallConn(); err == nil {
					_ = raw.Control(func(fd uintptr) { e.take(guest.Stream(i), int(fd), drainMax) })
				}
			}
		}
		e.publish()
	}
	retire := e.open == 0 && e.exec.End != nil
	e.mu.Unlock()
	if e.input != nil && !e.exec.TTY {
		e.input.close(false)
	}
	if retire {
		e.s.retire(e)
	}
}

// publish makes the end known. The caller holds e.mu.
func (e *exec) publish() {
	end := &guest.End{At: time.Now(), TimedOut: e.timedOut, LostBytes: e.out[0].lost + e.out[1].lost}
	if e.status.Signaled() {
		end.Code = 128 + int32(e.status.Signal())
		end.Signal = unix.SignalName(e.status.Signal())
	} else {
		end.Code = int32(e.status.ExitStatus())
	}
	if e.timedOut {
		end.Code = exitTimeout
	}
	e.exec.End = end
	e.wake()
	main := e.exec.ID == guest.MainExec
	if !main {
		e.s.running.Add(-1)
	}
	// Not under e.mu: s.mu is taken before it.
	go func() {
		e.s.mu.Lock()
		e.s.notify(main)
		e.s.mu.Unlock()
	}()
}

// view returns the process as it is now. The caller holds e.mu.
func (e *exec) view() *guest.Exec {
	x := e.exec
	x.Stdout, x.Stderr = e.out[0].size, e.out[1].size
	return &x
}

// packed returns what the archive keeps of a process. The caller holds e.mu.
func (e *exec) packed() (head, out, err []byte) {
	k := guest.Kept{OrderLost: e.ord.lost, OrderFile: e.ord.size}
	for i := range e.out {
		k.Has[i] = e.out[i].path != ""
	}
	if len(e.ord.buf) > 0 || e.ord.size > 0 {
		k.Order = e.ord.buf
	}
	head = guest.EncodeKept(e.view(), k, guest.Run{Stream: e.ord.cur, Len: e.ord.run})
	return head, e.out[0].buf, e.out[1].buf
}

// retire moves a process that has ended, and whose outputs are at their end, to
// the archive. When the disk is full it stays in memory instead.
func (s *Supervisor) retire(e *exec) {
	e.mu.Lock()
	for i := range e.out {
		if f := e.out[i].file; f != nil {
			_ = f.Close()
			e.out[i].file = nil
		}
	}
	if e.ord.file != nil {
		_ = e.ord.file.Close()
		e.ord.file = nil
	}
	head, out, errOut := e.packed()
	e.mu.Unlock()
	taken := int64(-1)
	if e.input != nil {
		taken, _ = e.input.state()
	}
	off, err := s.archive.append(head, out, errOut)
	if err != nil {
		return
	}
	s.mu.Lock()
	s.done[e.exec.ID] = record{seq: e.seq, size: uint32(len(head)), off: off, taken: taken}
	delete(s.live, e.exec.ID)
	s.mu.Unlock()
}

// OutputState implements guest.OutputSource.
func (e *exec) OutputState() guest.OutputState {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	st := guest.OutputState{Size: [2]int64{e.out[0].size, e.out[1].size}, End: e.exec.End, Changed: e.changed}
	if st.End != nil {
		end := *st.End
		end.LostBytes = e.out[0].lost + e.out[1].lost
		st.End = &end
	}
	return st
}

// ReadOutput implements guest.OutputSource.
func (e *exec) ReadOutput(i guest.Stream, off int64, p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.out[i].readAt(p, off)
}

// OutputRun implements guest.OutputSource.
func (e *exec) OutputRun(pos int64) (guest.Run, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ord.at(pos)
}

// source finds the output of a process, or nil.
func (s *Supervisor) source(id string) guest.OutputSource {
	e, r, ok := s.lookup(id)
	if e != nil {
		return e
	}
	if ok {
		if p := s.load(r); p != nil {
			return p
		}
	}
	return nil
}

func (s *Supervisor) lookup(id string) (*exec, record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.live[id]
	r, ok := s.done[id]
	return e, r, ok
}

// find returns a process as it is now, or nil.
func (s *Supervisor) find(id string) *guest.Exec {
	e, r, ok := s.lookup(id)
	if e != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.view()
	}
	if ok {
		if p := s.load(r); p != nil {
			return &p.exec
		}
	}
	return nil
}
