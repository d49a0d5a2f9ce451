package transfer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
)

// Received says what came.
type Received struct {
	Files int
	// Bytes is the size of all files, Content what of them is not zeros, and Wire what
	// came over the stream for them.
	Bytes, Content, Wire int64
}

// Files writes what the source sends into a folder, which is empty, checks every file and
// tells the source so. Waiting for the first byte is bounded by ctx alone. If it fails,
// the source is told, and nothing of the files stays.
func (t *Target) Files(ctx context.Context, dir string) (Received, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		_ = t.wire.giveUp(err)
		return Received{}, step("receive the files", err)
	}
	defer root.Close()
	u := &unpacker{root: root, maxFiles: t.maxFiles, maxBytes: t.maxBytes}
	defer u.close()
	got, err := t.receive(ctx, u)
	if err == nil {
		err = t.say(ctx, &nodev1.MoveMessage{Step: &nodev1.MoveMessage_Received{
			Received: &nodev1.MoveReceived{Files: uint32(got.Files)}, //nolint:gosec // at most maxFiles
		}})
	}
	if err != nil {
		if !isGaveUp(err) {
			_ = t.wire.giveUp(err)
		}
		return got, step("receive the files", errors.Join(err, u.remove()))
	}
	return got, nil
}

// arrived is one frame on its way from the goroutine that reads to the one that writes to
// the disk.
type arrived struct {
	kind byte
	body []byte
	room *room // of a part
}

func (a arrived) done() {
	if a.room != nil {
		rooms.Put(a.room)
	}
}

func (t *Target) receive(ctx context.Context, u *unpacker) (got Received, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	// The one that is written, those that wait, and the one that is read into are depth.
	frames := make(chan arrived, depth-2)
	var writing sync.WaitGroup
	writing.Go(func() {
		for f := range frames {
			if ctx.Err() == nil {
				if err := u.take(f.kind, f.body); err != nil {
					cancel(err)
				}
			}
			f.done()
		}
	})
	t.wire.moved = t.progress()
	defer func() {
		t.wire.moved = nil
		close(frames)
		writing.Wait()
		// Of two that failed, the disk is the cause.
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		got.Files, got.Bytes, got.Content = u.files, u.bytes, u.content
	}()
	for wait := time.Duration(0); ; wait = t.wire.stall {
		var f arrived
		f.kind, f.body, err = t.wire.next(ctx, wait, func(kind byte, size int) []byte {
			if kind != framePart {
				return make([]byte, size)
			}
			f.room = borrow()
			return f.room.frame[contentAt-partHead:][:size]
		})
		if err != nil {
			f.done()
			return got, err
		}
		got.Wire += int64(frameHead + len(f.body))
		end := f.kind == frameEnd
		select {
		case frames <- f:
		case <-ctx.Done():
			f.done()
			return got, context.Cause(ctx)
		}
		if end {
			return got, nil
		}
	}
}

// progress tells the source now and then that bytes come, which it can't see once it has
// written the last: they may be on their way for long.
func (t *Target) progress() func(context.Context) error {
	last := time.Now()
	return func(ctx context.Context) error {
		if time.Since(last) < t.wire.stall/4 {
			return nil
		}
		last = time.Now()
		return t.wire.write(ctx, frame(frameProgress, nil))
	}
}

// unpacker makes files of frames. It trusts nothing of what came.
type unpacker struct {
	root     *os.Root
	maxFiles int
	maxBytes int64

	made           []string // files
	files          int      // that are whole
	bytes, content int64
	zstd           *zstd.Decoder // nil until it is needed
	plain          *room         // for what zstd makes
	open           *openFile     // nil between files
	ended          bool
}

// openFile is the file that is being written.
type openFile struct {
	*os.File
	name  string
	size  int64
	least int64 // index that the next part has at least
	check sum
}

func (u *unpacker) close() {
	if u.open != nil {
		_ = u.open.Close()
	}
	if u.zstd != nil {
		u.zstd.Close()
		rooms.Put(u.plain)
	}
}

// remove takes back every file that was made.
func (u *unpacker) remove() error {
	var errs []error
	for _, name := range u.made {
		if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// take handles one frame.
func (u *unpacker) take(kind byte, body []byte) error {
	switch {
	case u.ended:
		return blame(ErrFormat, "a frame %c behind the end", kind)
	case kind == frameMessage:
		m, err := unpack(body)
		if err != nil {
			return err
		}
		if m.GetFile() == nil || u.open != nil {
			return blame(ErrFormat, "another message came than files have")
		}
		return u.begin(m.GetFile())
	case kind == framePart && u.open != nil:
		err := u.part(body)
		if err != nil {
			return fmt.Errorf("file %s: %w", u.open.name, err)
		}
		return nil
	case kind == frameSum && u.open != nil:
		return u.finish(body)
	case kind == frameEnd && u.open == nil:
		u.ended = true
		return nil
	}
	return blame(ErrFormat, "a frame %c out of order", kind)
}

// good says whether a name is that of a file in a folder.
func good(name string) bool {
	return name != "." && filepath.IsLocal(name) && !strings.ContainsAny(name, "/\\\x00") && len(name) <= 255 && utf8.ValidString(name)
}

func (u *unpacker) begin(f *nodev1.MoveFile) error {
	name, size := f.GetName(), f.GetSize()
	switch {
	case !good(name):
		return blame(ErrFormat, "a file may not be called %.300q", name)
	case size < 0:
		return blame(ErrFormat, "file %s has %d bytes", name, size)
	case len(u.made) >= u.maxFiles:
		return blame(ErrTooMuch, "more files than %d", u.maxFiles)
	case size > u.maxBytes-u.bytes || size > maxSize:
		return blame(ErrTooMuch, "more bytes than %d", u.maxBytes)
	}
	file, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return blame(ErrFormat, "file %s came twice, or was there before", name)
	}
	if err != nil {
		return diskError(err)
	}
	u.made = append(u.made, name)
	u.bytes += size
	u.open = &openFile{File: file, name: name, size: size, check: newSum(name, size)}
	return diskError(file.Truncate(size))
}

func (u *unpacker) part(body []byte) error {
	h, content, err := parsePart(body)
	if err != nil {
		return err
	}
	f, at := u.open, int64(h.index)*partSize
	if int64(h.index) < f.least || at >= f.size {
		return blame(ErrFormat, "part %d out of order, or behind the end", h.index)
	}
	f.least = int64(h.index) + 1
	want, fits := h.pages.length(int(min(partSize, f.size-at)))
	if !fits {
		return blame(ErrFormat, "part %d has pages behind the end", h.index)
	}
	if content, err = u.expand(h.encoding, content); err != nil {
		return err
	}
	if len(content) != want {
		return blame(ErrFormat, "part %d has %d bytes, and should have %d", h.index, len(content), want)
	}
	f.check.part(&h, content)
	u.content += int64(want)
	return diskError(h.pages.runs(content, func(off int, run []byte) error {
		_, err := f.WriteAt(run, at+int64(off))
		return err
	}))
}

// expand returns the content of a part as it was before it was compressed.
func (u *unpacker) expand(encoding byte, content []byte) ([]byte, error) {
	switch encoding {
	case encodingPlain:
		return content, nil
	case encodingZstd:
	default:
		return nil, blame(ErrFormat, "a part in the unknown encoding %d", encoding)
	}
	if u.zstd == nil {
		d, err := newDecompressor()
		if err != nil {
			return nil, err
		}
		u.zstd, u.plain = d, borrow()
	}
	plain, err := u.zstd.DecodeAll(content, u.plain.content()[:0])
	if err != nil {
		return nil, blame(ErrCorrupt, "a part can't be expanded: %v", err)
	}
	return plain, nil
}

// finish checks a file.
func (u *unpacker) finish(want []byte) error {
	f := u.open
	u.open = nil
	if err := f.Close(); err != nil {
		return diskError(err)
	}
	if got := f.check.value(); string(got[:]) != string(want) {
		return blame(ErrCorrupt, "file %s is not what was sent", f.name)
	}
	u.files++
	return nil
}
