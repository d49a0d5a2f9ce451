// Package cork lets several writes leave in one system call. It belongs below
// crypto/tls, which makes records of 16 KiB at most and writes each by itself.
package cork

import (
	"io"
	"sync"
)

// Record is the most that one TLS record carries, in bytes. What is not larger
// leaves in one system call anyway.
const Record = 16 << 10

// What is gathered is one message of 64 KiB with what TLS adds, as a rule; a
// buffer that grew past twice that is not kept.
const (
	usual = 72 << 10
	most  = 2 * usual
)

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, usual); return &b }}

// Writer passes on what is written to it: at once, or while Gather runs, at its
// end. It is safe for concurrent use; only one Gather may run at a time.
type Writer struct {
	to       io.Writer
	mu       sync.Mutex
	gathered *[]byte // nil while nothing is gathered
}

// New makes a writer.
func New(to io.Writer) *Writer { return &Writer{to: to} }

// Write passes b on, or keeps a copy until Gather ends.
func (w *Writer) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gathered != nil {
		*w.gathered = append(*w.gathered, b...)
		return len(b), nil
	}
	return w.to.Write(b)
}

// Gather calls write, and then passes everything on that came meanwhile, in one
// piece. Nothing is held back once it has returned. What it returns is write's
// result; when passing on failed, 0 and that error.
func (w *Writer) Gather(write func() (int, error)) (int, error) {
	buf := buffers.Get().(*[]byte) //nolint:errcheck // the pool holds nothing else
	w.mu.Lock()
	w.gathered = buf
	w.mu.Unlock()
	n, err := write()
	if ferr := w.flush(); err == nil && ferr != nil {
		return 0, ferr
	}
	return n, err
}

func (w *Writer) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	buf := w.gathered
	w.gathered = nil
	var err error
	if len(*buf) > 0 {
		_, err = w.to.Write(*buf)
	}
	if *buf = (*buf)[:0]; cap(*buf) <= most {
		buffers.Put(buf)
	}
	return err
}
