package guest

import (
	"context"
	"errors"
	"io"
	"time"
)

// FileReader streams the content of a file. It is for one goroutine.
type FileReader struct {
	// Info describes the file at the time it was opened.
	Info FileInfo
	k    *call
	rest []byte
	err  error
}

// Read implements io.Reader. It returns io.EOF only when the whole part that
// was asked for has been read.
func (r *FileReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		kd, d, err := r.k.recv()
		switch {
		case err != nil:
			r.err = err
		case kd == kindOK:
			r.err = io.EOF
		case kd == kindData:
			r.rest = d.b
		default:
			r.err = r.k.broken(errMalformed)
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Close ends the stream. It must be called.
func (r *FileReader) Close() error {
	r.k.close()
	return nil
}

// ReadFile opens a regular file for reading from offset, length bytes or to the
// end if length is 0. Errors: ErrNotFound, ErrIsDir, ErrPermission, ErrInvalid.
func (c *Client) ReadFile(ctx context.Context, path string, offset, length int64) (*FileReader, error) {
	e := request(OpRead)
	e.string(path)
	e.int(offset)
	e.int(length)
	k, err := c.open(ctx, 0, e)
	if err != nil {
		return nil, err
	}
	kd, d, err := k.recv()
	r := &FileReader{k: k}
	if err == nil {
		r.Info.decode(d)
		if kd != kindItem || d.bad {
			err = k.broken(errMalformed)
		}
	}
	if err != nil {
		k.close()
		return nil, err
	}
	return r, nil
}

// errAnswered: the guest has answered, so that sending on is of no use.
var errAnswered = errors.New("guest: answered before the end")

// WriteFile replaces a file by what r holds: it appears when r has ended with
// io.EOF, and not at all otherwise. mode 0 means 0644. An existing file's owner
// is kept; a new one belongs to the user of Setup. A symlink is replaced, not
// followed. The error of r is returned as it is. Errors: ErrNotFound (no such
// folder), ErrNotDir, ErrIsDir, ErrPermission, ErrNoSpace, ErrInvalid.
func (c *Client) WriteFile(ctx context.Context, path string, mode uint32, makeParents bool, r io.Reader) (FileInfo, error) {
	e := request(OpWrite)
	e.string(path)
	e.uint(uint64(mode))
	e.bool(makeParents)
	k, err := c.open(ctx, 0, e)
	if err != nil {
		return FileInfo{}, err
	}
	defer k.close()

	// The guest may refuse in the middle, and then reads no more.
	type answer struct {
		d   *decoder
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		d, err := k.result()
		answered <- answer{d, err}
		_ = k.stream.SetWriteDeadline(time.Unix(1, 0))
	}()
	var a answer
	src := &source{Reader: r}
	if err := k.sendAll(src, func() bool { return len(answered) > 0 }); err != nil && !errors.Is(err, errAnswered) {
		// Closing without the end frame tells the guest to drop it all.
		_ = k.stream.Close()
		_ = k.stream.SetReadDeadline(time.Unix(1, 0))
		a = <-answered
		// Of a source that broke, the guest says only that the rest is missing.
		var refused *Error
		if !src.broke && errors.As(a.err, &refused) {
			return FileInfo{}, refused
		}
		return FileInfo{}, err
	}
	a = <-answered
	if a.err != nil {
		return FileInfo{}, a.err
	}
	var f FileInfo
	if f.decode(a.d); a.d.bad {
		return f, k.broken(errMalformed)
	}
	return f, nil
}

// source is what is written to a file. It remembers whether reading it failed.
type source struct {
	io.Reader
	broke bool
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	s.broke = err != nil && err != io.EOF
	return n, err
}

func (k *call) sendAll(r io.Reader, answered func() bool) error {
	buf := make([]byte, prefix+chunk)
	for {
		n, err := r.Read(buf[prefix:])
		if answered() {
			return errAnswered
		}
		if n > 0 {
			e := encoder{b: buf[:prefix+n]}
			e.b[0] = byte(kindData)
			if _, err := k.stream.Write(e.frame()); err != nil {
				if answered() {
					return errAnswered
				}
				return k.broken(err)
			}
		}
		if err == io.EOF {
			_, err := k.stream.Write(newEncoder(kindEnd).frame())
			if err != nil && !answered() {
				return k.broken(err)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// ListFiles calls fn for each entry of a folder, sorted by name, and returns
// the error of fn if it has one. Errors: ErrNotFound, ErrNotDir.
func (c *Client) ListFiles(ctx context.Context, path string, fn func(FileInfo) error) error {
	e := request(OpListFiles)
	e.string(path)
	k, err := c.open(ctx, 0, e)
	if err != nil {
		return err
	}
	defer k.close()
	k.whole = MaxList
	for {
		kd, d, err := k.recv()
		if err != nil {
			return err
		}
		if kd == kindOK {
			return nil
		}
		var f FileInfo
		f.decode(d)
		if kd != kindItem || d.bad {
			return k.broken(errMalformed)
		}
		if err := fn(f); err != nil {
			return err
		}
	}
}

func (c *Client) file(ctx context.Context, e *encoder) (FileInfo, error) {
	var f FileInfo
	err := c.unary(ctx, unaryTimeout, e, f.decode)
	return f, err
}

// Stat describes a file, and a symlink itself. Errors: ErrNotFound, ErrNotDir.
func (c *Client) Stat(ctx context.Context, path string) (FileInfo, error) {
	e := request(OpStat)
	e.string(path)
	return c.file(ctx, e)
}

// MakeDir makes a folder and its parents; one that exists is no error and keeps
// its mode. mode 0 means 0755. Errors: ErrNotDir, ErrNoSpace, ErrPermission.
func (c *Client) MakeDir(ctx context.Context, path string, mode uint32) (FileInfo, error) {
	e := request(OpMakeDir)
	e.string(path)
	e.uint(uint64(mode))
	return c.file(ctx, e)
}

// Remove removes a file or an empty folder, or with recursive a folder with all
// that is in it. Errors: ErrNotFound, ErrNotEmpty, ErrPermission.
func (c *Client) Remove(ctx context.Context, path string, recursive bool) error {
	e := request(OpRemove)
	e.string(path)
	e.uint(0)
	e.bool(recursive)
	return c.unary(ctx, 10*unaryTimeout, e, nil)
}

// Move renames, replacing a file that has the new name. Errors: ErrNotFound,
// ErrNotDir, ErrIsDir, ErrNotEmpty, ErrInvalid (into itself, or to another file
// system).
func (c *Client) Move(ctx context.Context, from, to string) (FileInfo, error) {
	e := request(OpMove)
	e.string(from)
	e.string(to)
	return c.file(ctx, e)
}

// Watch calls fn with WatchStarted and then with each change of a folder's
// entries, with recursive of those below as well, or of one file. It returns the
// error of fn, nil when the watched path itself has been removed, or: ErrNotFound,
// ErrLimit (too many folders), ErrOverflow (changes were lost: list and watch
// again).
func (c *Client) Watch(ctx context.Context, path string, recursive bool, fn func(FileEvent) error) error {
	e := request(OpWatch)
	e.string(path)
	e.uint(0)
	e.bool(recursive)
	k, err := c.open(ctx, 0, e)
	if err != nil {
		return err
	}
	defer k.close()
	for {
		kd, d, err := k.recv()
		if err != nil {
			return err
		}
		if kd == kindOK {
			return nil
		}
		v := FileEvent{Path: text(d.string()), Change: Change(d.byte())}
		if kd != kindItem || d.bad {
			return k.broken(errMalformed)
		}
		if err := fn(v); err != nil {
			return err
		}
	}
}
