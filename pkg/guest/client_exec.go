package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"
)

// Start starts a process. Starting an id again is no error: the answer is the
// process that exists. Errors: ErrInvalid, ErrCommandNotFound,
// ErrNotExecutable, ErrWorkdirMissing, ErrWorkdirDenied, ErrUnknownUser, ErrNoResources, ErrLimit, ErrStopping.
func (c *Client) Start(ctx context.Context, r StartRequest) (Exec, error) {
	e := request(OpStart)
	r.encode(e)
	var x Exec
	err := c.unary(ctx, unaryTimeout, e, x.decode)
	return x, err
}

// Wait answers with the process when it has ended, or with the running one when
// the timeout passes first; zero answers at once. Errors: ErrNotFound.
func (c *Client) Wait(ctx context.Context, id string, timeout time.Duration) (Exec, error) {
	e := request(OpWait)
	e.string(id)
	e.duration(timeout)
	var x Exec
	err := c.unary(ctx, timeout+unaryTimeout, e, x.decode)
	return x, err
}

// What an Exec and each argument of its command take in memory, in bytes.
const (
	execCost = 192
	argCost  = 16
)

// ListExecs returns every process that was started, oldest first.
func (c *Client) ListExecs(ctx context.Context) ([]Exec, error) {
	k, err := c.open(ctx, unaryTimeout, request(OpListExecs))
	if err != nil {
		return nil, err
	}
	defer k.close()
	k.whole = MaxList
	var list []Exec
	for {
		kd, d, err := k.recv()
		if err != nil {
			return nil, err
		}
		switch kd {
		case kindOK:
			return list, nil
		case kindItem:
			var x Exec
			x.decode(d)
			// What a list costs here counts, not only what it took on the way: an
			// item of a few bytes becomes a whole Exec.
			if k.taken += execCost + argCost*len(x.Command); k.taken > k.whole {
				return nil, k.broken(errTooLong)
			}
			if !d.bad {
				list = append(list, x)
				continue
			}
		}
		return nil, k.broken(errMalformed)
	}
}

// Signal sends a signal, named such as "SIGTERM" or "TERM", to the process's
// group; SIGKILL reaches its whole session. Errors: ErrNotFound, ErrEnded,
// ErrInvalid.
func (c *Client) Signal(ctx context.Context, id, signal string) error {
	e := request(OpSignal)
	e.string(id)
	e.string(signal)
	return c.unary(ctx, unaryTimeout, e, nil)
}

// Resize changes the window of a process with a terminal. Errors: ErrNotFound,
// ErrEnded, ErrInvalid (no terminal).
func (c *Client) Resize(ctx context.Context, id string, size Size) error {
	e := request(OpResize)
	e.string(id)
	e.uint(uint64(size.Rows))
	e.uint(uint64(size.Cols))
	return c.unary(ctx, unaryTimeout, e, nil)
}

// Stdin writes data, which starts at offset of the whole input, and then closes
// the input if end is set. Bytes that were taken before are skipped. It returns
// how far the input has been taken, and blocks while the process does not read;
// after a cancelled call, repeat it with the same offset. Errors: ErrNotFound,
// ErrGap, ErrStdinClosed (also when the process has ended; a resend of what was
// taken before is no error).
func (c *Client) Stdin(ctx context.Context, id string, offset int64, data []byte, end bool) (int64, error) {
	for {
		part := data[:min(len(data), MaxStdin)]
		data = data[len(part):]
		e := request(OpStdin)
		e.string(id)
		e.int(offset)
		e.bytes(part)
		e.bool(end && len(data) == 0)
		var taken int64
		if err := c.unary(ctx, 0, e, func(d *decoder) { taken = d.int() }); err != nil {
			return 0, err
		}
		if len(data) == 0 {
			return taken, nil
		}
		offset += int64(len(part))
	}
}

// Output is a piece of output, or the end.
type Output struct {
	Stream Stream
	// Offset is that of the first byte of Data in its stream.
	Offset int64
	// Data is valid until the next Next.
	Data []byte
	// End is set in the last piece once the process has ended.
	End *End
}

// OutputReader streams the output of one process. It is for one goroutine,
// except Close.
type OutputReader struct {
	k    *call
	done bool
}

// Next returns the next piece, and io.EOF after the last.
func (r *OutputReader) Next() (Output, error) {
	if r.done {
		return Output{}, io.EOF
	}
	kd, d, err := r.k.recv()
	if err != nil {
		r.done = true
		return Output{}, err
	}
	switch kd {
	case kindStdout, kindStderr:
		off := d.uint()
		if d.bad || off > 1<<62 {
			break
		}
		return Output{Stream: Stream(kd - kindStdout), Offset: int64(off), Data: d.b}, nil
	case kindOK:
		r.done = true
		end := decodeEnd(d)
		if d.bad {
			break
		}
		if end == nil {
			return Output{}, io.EOF
		}
		return Output{End: end}, nil
	}
	r.done = true
	return Output{}, r.k.broken(errMalformed)
}

// Close ends the stream. It must be called.
func (r *OutputReader) Close() error {
	r.k.close()
	return nil
}

// Skip as an offset of Attach leaves a stream out.
const Skip int64 = -1

// Attach streams both outputs from the given offsets, each in its own order,
// until the process has ended, or with follow false until what is there has been
// sent. It survives the end of the process: what is kept can be read again until
// the sandbox is gone. Errors: ErrNotFound, at the first Next.
func (c *Client) Attach(ctx context.Context, id string, stdout, stderr int64, follow bool) (*OutputReader, error) {
	e := request(OpAttach)
	e.string(id)
	e.int(stdout)
	e.int(stderr)
	e.bool(!follow)
	k, err := c.open(ctx, 0, e)
	if err != nil {
		return nil, err
	}
	return &OutputReader{k: k}, nil
}

// Logs streams both outputs from the beginning in the order they came. Where
// the order could not be kept (the disk was full), standard output comes before
// standard error. Errors: ErrNotFound, at the first Next.
func (c *Client) Logs(ctx context.Context, id string, follow bool) (*OutputReader, error) {
	e := request(OpLogs)
	e.string(id)
	e.bool(!follow)
	k, err := c.open(ctx, 0, e)
	if err != nil {
		return nil, err
	}
	return &OutputReader{k: k}, nil
}

// Collect reads an output stream to its end and returns what it held, at most
// limit bytes of each stream, and how the process ended (nil if it runs). It is
// for short outputs.
func Collect(r *OutputReader, limit int) (stdout, stderr []byte, end *End, err error) {
	defer r.Close()
	var b [2]bytes.Buffer
	for {
		o, err := r.Next()
		if errors.Is(err, io.EOF) {
			return b[0].Bytes(), b[1].Bytes(), end, nil
		}
		if err != nil {
			return b[0].Bytes(), b[1].Bytes(), end, err
		}
		if o.End != nil {
			end = o.End
		}
		w := &b[o.Stream]
		w.Write(o.Data[:max(0, min(len(o.Data), limit-w.Len()))])
	}
}
