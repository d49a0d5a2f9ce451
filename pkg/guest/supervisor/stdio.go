package supervisor

import (
	"errors"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

// endOfInput is what a terminal takes for the end of input.
const endOfInput = "\x04"

// stdio holds both ends of a process's standard files.
type stdio struct {
	child [3]uintptr
	own   []int // what of child has to be closed here after the start
	out   [2]*os.File
	input *input // nil: standard input is empty
}

func (f *stdio) closeChild() {
	for _, fd := range f.own {
		_ = unix.Close(fd)
	}
	f.own = nil
}

func (f *stdio) closeParent() {
	for _, o := range f.out {
		if o != nil {
			_ = o.Close()
		}
	}
	if f.input != nil {
		f.input.close(false)
	}
}

func noFiles(err error) error {
	return guest.Fail(guest.CodeNoResources, "standard files: ", err.Error())
}

// pipe makes a pipe; the end that stays here does not block.
func pipe(keepRead bool) (ours *os.File, theirs int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, noFiles(err)
	}
	mine, other := p[1], p[0]
	if keepRead {
		mine, other = other, mine
	}
	if err := unix.SetNonblock(mine, true); err != nil {
		_ = unix.Close(p[0])
		_ = unix.Close(p[1])
		return nil, -1, noFiles(err)
	}
	return os.NewFile(uintptr(mine), "pipe"), other, nil
}

func openPipes(stdin bool) (f *stdio, err error) {
	f = &stdio{}
	defer func() {
		if err != nil {
			f.closeChild()
			f.closeParent()
		}
	}()
	in := -1
	if !stdin {
		in, err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if in < 0 {
		var w *os.File
		if w, in, err = pipe(false); err != nil {
			return nil, err
		}
		if stdin {
			f.input = newInput(w, false)
		} else {
			// An image without /dev/null: a pipe that is at its end.
			_ = w.Close()
		}
	}
	f.child[0] = uintptr(in)
	f.own = append(f.own, in)
	for i := range f.out {
		r, w, err := pipe(true)
		if err != nil {
			return nil, err
		}
		f.out[i] = r
		f.child[1+i] = uintptr(w)
		f.own = append(f.own, w)
	}
	return f, nil
}

func openTerminal(size guest.Size, uid uint32) (*stdio, error) {
	none := func(err error) error {
		return guest.Fail(guest.CodeUnsupported, "no terminal in this sandbox: ", err.Error())
	}
	ptm, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, none(err)
	}
	n, err := unix.IoctlGetInt(ptm, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(ptm, unix.TIOCSPTLCK, 0)
	}
	pts := -1
	if err == nil {
		pts, err = unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		_ = unix.Close(ptm)
		return nil, none(err)
	}
	// Without it, programs can still use the terminal that they inherit.
	_ = unix.Fchown(pts, int(uid), -1)
	_ = setSize(ptm, size)
	f := &stdio{child: [3]uintptr{uintptr(pts), uintptr(pts), uintptr(pts)}, own: []int{pts}}
	f.out[0] = os.NewFile(uintptr(ptm), "ptmx")
	f.input = newInput(f.out[0], true)
	return f, nil
}

func setSize(fd int, size guest.Size) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
}

func (e *exec) resize(size guest.Size) error {
	if !e.exec.TTY {
		return guest.Fail(guest.CodeInvalid, "process has no terminal")
	}
	raw, err := e.input.file.SyscallConn()
	if err != nil {
		return err
	}
	ended := raw.Control(func(fd uintptr) { err = setSize(int(fd), size) })
	if ended != nil {
		return guest.Fail(guest.CodeEnded, "process has ended")
	}
	return err
}

// input is the standard input of a process. Bytes count as taken when they are
// in the pipe.
type input struct {
	file *os.File
	tty  bool
	turn chan struct{} // whoever writes holds it

	mu     sync.Mutex
	taken  int64
	closed bool
}

func newInput(f *os.File, tty bool) *input {
	return &input{file: f, tty: tty, turn: make(chan struct{}, 1)}
}

// close ends the input; gently means that a terminal stays open for output.
func (in *input) close(gently bool) {
	in.mu.Lock()
	in.closed = true
	in.mu.Unlock()
	if !gently {
		_ = in.file.Close()
	}
}

func (in *input) state() (int64, bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.taken, in.closed
}

// rest returns what of data, which starts at off, has not been taken yet. To a
// closed input only a resend may come.
func rest(off int64, data []byte, taken int64, closed bool) ([]byte, error) {
	if off > taken {
		return nil, guest.Fail(guest.CodeGap, "standard input continues at ", strconv.FormatInt(taken, 10))
	}
	data = data[min(taken-off, int64(len(data))):]
	if closed && len(data) > 0 {
		return nil, guest.Fail(guest.CodeClosed, "standard input is closed")
	}
	return data, nil
}

// write takes data from off on, and returns how far the input has been taken.
// It blocks while the process does not read, until gone.
func (in *input) write(off int64, data []byte, end bool, gone <-chan struct{}) (int64, error) {
	select {
	case in.turn <- struct{}{}:
		defer func() { <-in.turn }()
	case <-gone:
		return 0, guest.Fail(guest.CodeInternal, "client is gone")
	}
	taken, closed := in.state()
	data, err := rest(off, data, taken, closed)
	if err != nil || closed {
		return taken, err
	}
	if len(data) > 0 {
		n, err := in.push(data, gone)
		in.mu.Lock()
		in.taken += int64(n)
		taken = in.taken
		in.mu.Unlock()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return taken, guest.Fail(guest.CodeInternal, "client is gone")
		case err != nil:
			in.close(in.tty)
			return taken, guest.Fail(guest.CodeClosed, "process no longer reads its standard input")
		}
	}
	if end {
		if in.tty {
			_, _ = in.push([]byte(endOfInput), gone)
		}
		in.close(in.tty)
	}
	return taken, nil
}

// push writes all of data unless gone comes first.
func (in *input) push(data []byte, gone <-chan struct{}) (int, error) {
	_ = in.file.SetWriteDeadline(time.Time{})
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-gone:
			_ = in.file.SetWriteDeadline(time.Unix(1, 0))
		case <-stop:
		}
	}()
	n, err := in.file.Write(data)
	close(stop)
	<-stopped
	if errors.Is(err, syscall.EAGAIN) {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

func (s *Supervisor) handleStdin(c *guest.Call) {
	id, off, data, end, ok := c.Stdin()
	if !ok {
		return
	}
	e, r, past := s.lookup(id)
	switch {
	case e == nil && !past:
		c.Fail(guest.Fail(guest.CodeNotFound, "no exec ", id))
	case e == nil && r.taken >= 0:
		if _, err := rest(off, data, r.taken, true); err != nil {
			c.Fail(err)
			return
		}
		c.Offset(r.taken)
	case e == nil || e.input == nil:
		c.Fail(guest.Fail(guest.CodeClosed, "standard input is closed"))
	default:
		before, _ := e.input.state()
		taken, err := e.input.write(off, data, end, c.Gone())
		if taken > before {
			s.touchInput(taken - before)
		}
		if err != nil {
			c.Fail(err)
			return
		}
		c.Offset(taken)
	}
}
