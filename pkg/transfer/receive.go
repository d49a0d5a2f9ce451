package transfer

import (
	"bytes"
	"context"
	"encoding/binary"
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
	// Bytes is the size of all files, Content what of them is not zeros, Wire what came
	// over the stream for them, and Known what of Content was here already.
	Bytes, Content, Wire, Known int64
}

// Files writes what the source sends into a folder, which is empty, checks every file and
// tells the source so; also of what it sends ahead, which is kept until Close, and not
// counted. Waiting for the first byte, of either, is bounded by ctx alone. If it fails,
// the source is told, and nothing of the files stays.
func (t *Target) Files(ctx context.Context, dir string) (Received, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		_ = t.wire.giveUp(err)
		return Received{}, step("receive the files", err)
	}
	defer root.Close()
	u := &unpacker{root: root, maxFiles: t.maxFiles, maxBytes: t.maxBytes}
	defer func() {
		t.base = u.base
		u.close()
	}()
	got, err := t.receive(ctx, u)
	if err == nil && u.base != nil {
		if err = t.received(ctx, 1); err == nil {
			u.ended, u.second, u.bytes, u.content = false, true, 0, 0
			got, err = t.receive(ctx, u)
		}
	}
	if err == nil {
		err = t.received(ctx, got.Files)
	}
	if err != nil {
		if !isGaveUp(err) {
			_ = t.wire.giveUp(err)
		}
		return got, step("receive the files", errors.Join(err, u.remove()))
	}
	return got, nil
}

func (t *Target) received(ctx context.Context, files int) error {
	return t.say(ctx, &nodev1.MoveMessage{Step: &nodev1.MoveMessage_Received{
		Received: &nodev1.MoveReceived{Files: uint32(files)}, //nolint:gosec // at most maxFiles
	}})
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
		got.Files, got.Bytes, got.Content, got.Known = u.files, u.bytes, u.content, u.reused
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
	reused         int64         // of content: what came ahead
	zstd           *zstd.Decoder // nil until it is needed
	plain          *room         // for what zstd makes
	open           *openFile     // nil between files
	base           *openFile     // what came ahead; nil for nothing
	second         bool          // what comes is not ahead any more
	ended          bool
}

// openFile is the file that is being written.
type openFile struct {
	*os.File
	name  string
	ahead bool
	// least is the index that the next part has at least, leastKnown that of the next
	// pages that are here already. Of one part, these come first: known.
	least, leastKnown int64
	known             pageMap
	// end is behind the last byte that came; short says that the file has to end there.
	end   int64
	short bool
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
		return u.inFile(u.part(body))
	case kind == frameKnown && u.open != nil:
		return u.inFile(u.known(body))
	case kind == frameSum && u.open != nil:
		err := u.inFile(u.finish(body))
		if err == nil {
			u.open = nil
		}
		return err
	case kind == frameProgress:
		return nil
	case kind == frameEnd && u.open == nil:
		u.ended = true
		return nil
	}
	return blame(ErrFormat, "a frame %c out of order", kind)
}

// inFile says in which file something is wrong.
func (u *unpacker) inFile(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("file %s: %w", u.open.name, err)
}

// good says whether a name is that of a file in a folder.
func good(name string) bool {
	return name != "." && filepath.IsLocal(name) && !strings.ContainsAny(name, "/\\\x00") && len(name) <= 255 && utf8.ValidString(name)
}

func (u *unpacker) begin(f *nodev1.MoveFile) error {
	name := f.GetName()
	switch {
	case !good(name):
		return blame(ErrFormat, "a file may not be called %.300q", name)
	case len(u.made) >= u.maxFiles:
		return blame(ErrTooMuch, "more files than %d", u.maxFiles)
	case f.GetAhead() && (u.base != nil || len(u.made) > 0):
		return blame(ErrFormat, "file %s can't be sent ahead any more", name)
	case u.base != nil && !u.second:
		return blame(ErrFormat, "file %s came with one that is sent ahead", name)
	}
	file, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return blame(ErrFormat, "file %s came twice, or was there before", name)
	}
	if err != nil {
		return diskError(err)
	}
	u.made = append(u.made, name)
	u.open = &openFile{File: file, name: name, ahead: f.GetAhead(), check: newSum(name)}
	return nil
}

// fits says whether the open file may have so many bytes.
func (u *unpacker) fits(size int64) error {
	if size > u.maxBytes-u.bytes || size > maxSize {
		return blame(ErrTooMuch, "more bytes than %d", u.maxBytes)
	}
	return nil
}

func (u *unpacker) part(body []byte) error {
	h, content, err := parsePart(body)
	if err != nil {
		return err
	}
	f, at := u.open, int64(h.index)*partSize
	if int64(h.index) < f.least || f.short {
		return blame(ErrFormat, "part %d out of order", h.index)
	}
	if int64(h.index) == f.leastKnown-1 && h.pages.meets(&f.known) {
		return blame(ErrFormat, "pages of part %d came twice", h.index)
	}
	f.least, f.leastKnown = int64(h.index)+1, int64(h.index)+1
	if content, err = u.expand(h.encoding, content); err != nil {
		return err
	}
	end, missing, ok := h.pages.fit(len(content))
	if !ok {
		return blame(ErrFormat, "part %d has %d bytes, which is not what its map says", h.index, len(content))
	}
	if f.short = missing > 0; f.short && at+end < f.end {
		return blame(ErrFormat, "part %d ends before its last page", h.index)
	}
	f.end = max(f.end, at+end)
	if err := u.fits(f.end); err != nil {
		return err
	}
	f.check.part(&h, content)
	u.content += int64(len(content))
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

// finish checks a file, and closes it if it is whole.
func (u *unpacker) finish(body []byte) error {
	f := u.open
	if len(body) != endSize {
		return blame(ErrFormat, "an end of %d bytes", len(body))
	}
	size := int64(binary.BigEndian.Uint64(body)) //nolint:gosec // what is negative is refused
	if size < f.end || f.short && size > f.end {
		return blame(ErrFormat, "it should have %d bytes, and its parts end at %d", size, f.end)
	}
	if err := u.fits(size); err != nil {
		return err
	}
	if !bytes.Equal(f.check.end(size), body) {
		return blame(ErrCorrupt, "it is not what was sent")
	}
	// Holes have no parts.
	if err := diskError(f.Truncate(size)); err != nil {
		return err
	}
	if f.ahead {
		f.end = size
		return u.keep(f)
	}
	u.bytes += size
	u.files++
	return diskError(f.Close())
}
