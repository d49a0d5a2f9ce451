package supervisor

import (
	"os"
	"sync"
	"syscall"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

// record says where in the archive a process that has ended is described.
type record struct {
	seq  uint32
	size uint32 // of the description; outputs that had no file follow it
	off  int64
	// taken is how far its standard input was taken, which a resend is told; -1
	// if it had none.
	taken int64
}

// archive is one file with all processes that have ended and their short
// outputs: a file for each would cost ten times as much in a sandbox whose
// files are in memory.
type archive struct {
	path string
	mu   sync.Mutex
	file *os.File
	size int64
}

func (a *archive) append(parts ...[]byte) (int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.file == nil {
		f, err := os.OpenFile(a.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return 0, err
		}
		a.file = f
	}
	at := a.size
	for _, p := range parts {
		if len(p) == 0 {
			continue
		}
		if _, err := a.file.WriteAt(p, a.size); err != nil {
			a.size = at
			return 0, err
		}
		a.size += int64(len(p))
	}
	return at, nil
}

func (a *archive) readAt(p []byte, off int64) (int, error) {
	a.mu.Lock()
	f := a.file
	a.mu.Unlock()
	return f.ReadAt(p, off)
}

// past is a process that has ended, as read from the archive.
type past struct {
	s    *Supervisor
	exec guest.Exec
	out  [2]output
	ord  order
	// off is where in the archive each output begins that has no file.
	off [2]int64
}

// load reads a process that has ended; nil if the archive is gone.
func (s *Supervisor) load(r record) *past {
	head := make([]byte, r.size)
	if n, _ := s.archive.readAt(head, r.off); n != len(head) {
		return nil
	}
	x, files, runs, err := guest.DecodeKept(head)
	if err != nil {
		return nil
	}
	p := &past{s: s, exec: x}
	at := r.off + int64(r.size)
	p.out[0].size, p.out[1].size = x.Stdout, x.Stderr
	for i := range p.out {
		if files.Has[i] {
			p.out[i].path = s.path(r.seq, "oe"[i])
			continue
		}
		p.off[i] = at
		at += p.out[i].size
	}
	p.ord = order{cur: runs.Stream, run: runs.Len, lost: files.OrderLost, buf: files.Order, size: files.OrderFile}
	if files.OrderFile > 0 {
		p.ord.path = s.path(r.seq, 'r')
	}
	return p
}

// OutputState implements guest.OutputSource.
func (p *past) OutputState() guest.OutputState {
	return guest.OutputState{Size: [2]int64{p.exec.Stdout, p.exec.Stderr}, End: p.exec.End}
}

// ReadOutput implements guest.OutputSource.
func (p *past) ReadOutput(i guest.Stream, off int64, b []byte) (int, error) {
	o := &p.out[i]
	if o.path != "" {
		return o.readAt(b, off)
	}
	return p.s.archive.readAt(b[:min(int64(len(b)), o.size-off)], p.off[i]+off)
}

// OutputRun implements guest.OutputSource.
func (p *past) OutputRun(pos int64) (guest.Run, bool) { return p.ord.at(pos) }
