package supervisor

import (
	"encoding/binary"
	"os"
	"sync"
	"syscall"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

const (
	// memBuf is how much of an output is held in memory before it gets a file.
	memBuf = 4 << 10
	// readBuf is how much is read from a process at once.
	readBuf = 32 << 10
	// drainMax is how much is taken of a pipe after the process's end: a pipe's
	// largest capacity, so that a child that goes on writing can't delay the end.
	drainMax = 1 << 20
	// orderBuf is how much of the order log is held in memory.
	orderBuf = 1 << 10
)

var readBufs = sync.Pool{New: func() any { return new([readBuf]byte) }}

// output is one of the two outputs of a process. exec.mu guards it.
type output struct {
	pipe *os.File // the end that is read; nil once it is at its end
	buf  []byte   // what is kept, until there is a file
	file *os.File // open for writing while pipe is
	path string   // set when there is a file
	size int64
	lost int64
}

// keep appends p and returns how much of it was kept. Lost bytes take no place
// in the offsets.
func (o *output) keep(s *Supervisor, e *exec, i guest.Stream, p []byte) int {
	n := s.reserve(len(p))
	if o.file == nil && o.path == "" && len(o.buf)+n > memBuf {
		o.spill(s.path(e.seq, "oe"[i]))
	}
	switch {
	case o.file != nil:
		m, err := o.file.WriteAt(p[:n], o.size)
		if err != nil {
			s.kept.Add(int64(m - n))
		}
		n = m
	case o.path == "":
		fit := min(n, memBuf-len(o.buf))
		o.buf = append(o.buf, p[:fit]...)
		s.kept.Add(int64(fit - n))
		n = fit
	default:
		s.kept.Add(int64(-n))
		n = 0
	}
	o.size += int64(n)
	o.lost += int64(len(p) - n)
	return n
}

// spill moves what is in memory into a file. When that fails, it stays where it
// is, and the next bytes try again.
func (o *output) spill(path string) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return
	}
	if _, err := f.WriteAt(o.buf, 0); err != nil {
		_ = f.Close()
		_ = os.Remove(path)
		return
	}
	o.file, o.path, o.buf = f, path, nil
}

func (o *output) readAt(p []byte, off int64) (int, error) {
	switch {
	case o.file != nil:
		return o.file.ReadAt(p, off)
	case o.path != "":
		return readFileAt(o.path, p, off)
	}
	return copy(p, o.buf[min(off, int64(len(o.buf))):]), nil
}

func readFileAt(path string, p []byte, off int64) (int, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(p, off)
}

// reserve takes up to n bytes of what may be kept in all and returns how many.
func (s *Supervisor) reserve(n int) int {
	limit := s.limit.Load()
	if limit <= 0 {
		s.kept.Add(int64(n))
		return n
	}
	over := s.kept.Add(int64(n)) - limit
	if over <= 0 {
		return n
	}
	back := min(over, int64(n))
	s.kept.Add(-back)
	return n - int(back)
}

// order remembers in which order the two outputs came, as runs: uvarint of
// length*2 + stream. It costs memory only when the streams alternate.
type order struct {
	cur  guest.Stream
	run  int64
	buf  []byte
	file *os.File
	path string
	size int64 // bytes in the file
	lost bool  // could not be kept: the order is unknown from here on
}

func (r *order) add(s *Supervisor, e *exec, i guest.Stream, n int64) {
	if r.lost || n == 0 {
		return
	}
	if i != r.cur && r.run > 0 {
		r.buf = binary.AppendUvarint(r.buf, uint64(r.run)<<1|uint64(r.cur))
		r.run = 0
		if len(r.buf) > orderBuf {
			r.flush(s.path(e.seq, 'r'))
		}
	}
	r.cur = i
	r.run += n
}

func (r *order) flush(path string) {
	if r.file == nil {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			r.lost = true
			return
		}
		r.file, r.path = f, path
	}
	if _, err := r.file.WriteAt(r.buf, r.size); err != nil {
		r.lost = true
		return
	}
	r.size += int64(len(r.buf))
	r.buf = r.buf[:0]
}

// at returns the run at a position of the log.
func (r *order) at(pos int64) (guest.Run, bool) {
	var p [binary.MaxVarintLen64]byte
	var n int
	switch {
	case pos < r.size:
		if r.file != nil {
			n, _ = r.file.ReadAt(p[:min(int64(len(p)), r.size-pos)], pos)
		} else {
			n, _ = readFileAt(r.path, p[:min(int64(len(p)), r.size-pos)], pos)
		}
	case pos-r.size < int64(len(r.buf)):
		n = copy(p[:], r.buf[pos-r.size:])
	case r.lost:
		return guest.Run{}, false
	default:
		return guest.Run{Stream: r.cur, Len: r.run}, true
	}
	v, k := binary.Uvarint(p[:n])
	if k <= 0 {
		return guest.Run{}, false
	}
	return guest.Run{Stream: guest.Stream(v & 1), Len: int64(v >> 1), Next: pos + int64(k)}, true
}
