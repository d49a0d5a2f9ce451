package api

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"path"
	"sync"

	"connectrpc.com/connect"
	"github.com/klauspost/compress/zstd"
	"github.com/sirocco-run/sirocco/pkg/fault"
)

// archive passes an upload through and makes sure, while it flows, that it is
// the archive of an image: a tar, packed with gzip or zstd perhaps, that holds
// an OCI layout or a docker save. What is not ends with an error instead of
// io.EOF, so that whoever stores it drops it.
//
// Concurrency: newArchive starts one goroutine; Close ends it and waits.
type archive struct {
	from io.Reader
	left int64
	pipe *io.PipeWriter
	done chan struct{}

	mu  sync.Mutex
	err error
	// verdict is what the scan found; read after done.
	verdict error
}

func newArchive(from io.Reader, most int64) *archive {
	r, w := io.Pipe()
	a := &archive{from: from, left: most, pipe: w, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.verdict = scan(r)
		_ = r.CloseWithError(errors.Join(errScanned, a.verdict))
	}()
	return a
}

// errScanned says that the scan has ended and takes no more.
var errScanned = errors.New("scanned")

// Read implements io.Reader.
func (a *archive) Read(p []byte) (int, error) {
	n, err := a.from.Read(p)
	if n > 0 {
		if a.left -= int64(n); a.left < 0 {
			return 0, a.fail(fault.Invalid("body", "the archive is larger than the operator allows"))
		}
		if _, werr := a.pipe.Write(p[:n]); werr != nil {
			<-a.done
			// A scan that has read to the end of the tar takes no padding.
			if a.verdict != nil {
				return 0, a.fail(a.verdict)
			}
		}
	}
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		return 0, a.fail(brokeOff(err))
	}
	_ = a.pipe.Close()
	<-a.done
	if a.verdict != nil {
		return 0, a.fail(a.verdict)
	}
	return n, io.EOF
}

func (a *archive) fail(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.err = err
	}
	return a.err
}

// Err returns why it was refused; nil if it was not.
func (a *archive) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// Close ends the scan.
func (a *archive) Close() {
	_ = a.pipe.CloseWithError(io.ErrUnexpectedEOF)
	<-a.done
}

// scan reads a whole archive. The error is an InvalidArgument fault.
func scan(r io.Reader) error {
	in := bufio.NewReaderSize(r, 64<<10)
	var packed io.Reader = in
	head, _ := in.Peek(4)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		gz, err := gzip.NewReader(in)
		if err != nil {
			return broken(err)
		}
		packed = gz
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(128<<20))
		if err != nil {
			return broken(err)
		}
		defer z.Close()
		packed = z
	}
	found := map[string]bool{}
	t := tar.NewReader(packed)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return broken(err)
		}
		found[path.Clean("/"+h.Name)] = true
		if len(found) > maxEntries {
			return fault.Invalid("body", "the archive holds more than %d entries", maxEntries)
		}
	}
	if !found["/manifest.json"] && !(found["/oci-layout"] && found["/index.json"]) {
		return fault.Invalid("body", "the archive holds neither an OCI layout (oci-layout, index.json) nor a docker save (manifest.json)")
	}
	return nil
}

// maxEntries is far above what an image of 128 layers has.
const maxEntries = 10_000

func broken(err error) error {
	return fault.Invalid("body", "it is not a whole tar archive: %w", err)
}

// brokeOff makes the fault of an upload that did not come to its end.
func brokeOff(err error) error {
	var rpc *connect.Error
	var f *fault.Fault
	if errors.As(err, &rpc) || errors.As(err, &f) {
		return err
	}
	return fault.New(fault.InvalidArgument, "the upload broke off: %w", err)
}
