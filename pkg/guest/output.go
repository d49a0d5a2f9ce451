package guest

import (
	"encoding/binary"
	"errors"
	"io"
)

// OutputState is what there is of a process's output at one moment.
type OutputState struct {
	// Size holds the bytes kept of Stdout and Stderr.
	Size [2]int64
	// End is set once the process has ended.
	End *End
	// Changed is closed when any of it has changed.
	Changed <-chan struct{}
}

// Run is a piece of the order in which output arrived: Len bytes of one stream
// before any of the other. Next is the position of the following run, or 0
// while this one is the last and may still grow.
type Run struct {
	Stream Stream
	Len    int64
	Next   int64
}

// OutputSource is the kept output of one process, for ServeOutput.
type OutputSource interface {
	OutputState() OutputState
	// ReadOutput fills p from off and returns how many bytes it had. It is
	// asked only for bytes within Size.
	ReadOutput(stream Stream, off int64, p []byte) (int, error)
	// OutputRun returns the run at a position; 0 is the first. ok is false
	// where the order is not known (any more).
	OutputRun(pos int64) (run Run, ok bool)
}

// ServeOutput answers OpAttach and OpLogs. find returns nil when there is no
// such process.
func ServeOutput(c *Call, find func(id string) OutputSource) {
	id := c.d.string()
	w := outputWriter{call: c}
	if c.Op == OpAttach {
		w.next[Stdout], w.next[Stderr] = c.d.int(), c.d.int()
	}
	noFollow := c.d.bool()
	if c.malformed() {
		return
	}
	if w.src = find(id); w.src == nil {
		c.Fail(Fail(CodeNotFound, "no exec ", id))
		return
	}
	for {
		st := w.src.OutputState()
		step := w.separate
		if c.Op == OpLogs {
			step = w.ordered
		}
		if err := step(st.Size); err != nil {
			c.Fail(err)
			return
		}
		if st.End != nil || noFollow {
			c.ok(func(e *encoder) { encodeEnd(e, st.End) })
			return
		}
		select {
		case <-st.Changed:
		case <-c.Gone():
			c.answered = true
			return
		}
	}
}

type outputWriter struct {
	call *Call
	src  OutputSource
	// next is the offset of the next byte to send of each stream; negative
	// leaves the stream out.
	next [2]int64
	// pos and taken say how far the order log has been followed.
	pos, taken int64
	buf        []byte
}

func (w *outputWriter) separate(size [2]int64) error {
	for s := range w.next {
		if w.next[s] < 0 {
			continue
		}
		if err := w.copy(Stream(s), size[s]-w.next[s]); err != nil {
			return err
		}
	}
	return nil
}

func (w *outputWriter) ordered(size [2]int64) error {
	for {
		run, ok := w.src.OutputRun(w.pos)
		if !ok {
			return w.separate(size)
		}
		n := min(run.Len-w.taken, size[run.Stream]-w.next[run.Stream])
		if err := w.copy(run.Stream, n); err != nil {
			return err
		}
		w.taken += max(n, 0)
		if run.Next == 0 || w.taken < run.Len {
			return nil
		}
		w.pos, w.taken = run.Next, 0
	}
}

// copy sends n bytes of a stream.
func (w *outputWriter) copy(s Stream, n int64) error {
	const head = prefix + binary.MaxVarintLen64
	for n > 0 {
		if want := head + int(min(n, chunk)); cap(w.buf) < want {
			w.buf = make([]byte, want)
		}
		body := w.buf[head:cap(w.buf)]
		got, err := w.src.ReadOutput(s, w.next[s], body[:min(n, int64(len(body)), chunk)])
		if got == 0 {
			if err == nil || errors.Is(err, io.EOF) {
				err = Fail(CodeInternal, "kept output is gone")
			}
			return err
		}
		// The offset stands right before the bytes, so that one write sends all.
		var v [binary.MaxVarintLen64]byte
		vn := binary.PutUvarint(v[:], uint64(w.next[s]))
		start := head - vn - prefix
		frame := w.buf[start : head+got]
		frame[0] = byte(kindStdout) + byte(s)
		binary.BigEndian.PutUint32(frame[1:], uint32(vn+got))
		copy(frame[prefix:], v[:vn])
		if _, err := w.call.stream.Write(frame); err != nil {
			return err
		}
		w.next[s] += int64(got)
		n -= int64(got)
	}
	return nil
}
