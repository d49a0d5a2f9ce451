package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	"golang.org/x/sys/unix"
)

// depth is how many parts each side holds at most.
const depth = 4

// Sent says what was sent.
type Sent struct {
	Files int
	// Bytes is the size of all files, Content what of them is not zeros, and Wire what
	// went over the stream for them.
	Bytes, Content, Wire int64
	// Compressed is how much of Content went in compressed form.
	Compressed int64
}

// Files sends every file of a folder, which holds nothing else, and waits until the
// target has them all, whole. If it fails here, the target is told.
func (s *Source) Files(ctx context.Context, dir string) (Sent, error) {
	sent, err := s.files(ctx, dir)
	if err != nil {
		if !isGaveUp(err) {
			_ = s.wire.giveUp(err)
		}
		return sent, step("send the files", err)
	}
	return sent, nil
}

func (s *Source) files(ctx context.Context, dir string) (Sent, error) {
	// What the target says is heard while it is still sent to: it may have no room.
	hearing, hush := context.WithCancelCause(ctx)
	sending, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	beat, answer := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		err := s.received(hearing, beat)
		if err != nil {
			cancel(err)
		}
		answer <- err
	}()
	sent, err := s.send(sending, dir)
	defer hush(nil)
	wait := s.wire.stall
	if err != nil {
		wait = farewell
		if !errors.Is(err, ErrGone) {
			hush(err)
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case said := <-answer:
			if err == nil || isGaveUp(said) {
				err = said
			}
			return sent, err
		case <-beat:
			if err == nil {
				timer.Reset(wait)
			}
		case <-timer.C:
			hush(blame(ErrStalled, "the other node made no progress with the files that it was sent"))
		}
	}
}

// received waits until the target has every file. Each beat is a sign that it gets on.
func (s *Source) received(ctx context.Context, beat chan<- struct{}) error {
	for {
		kind, body, err := s.wire.next(ctx, 0, fresh)
		if err != nil {
			return err
		}
		switch kind {
		case frameProgress:
			select {
			case beat <- struct{}{}:
			default:
			}
		case frameMessage:
			m, err := unpack(body)
			if err == nil && m.GetReceived() == nil {
				err = s.wire.reject("received")
			}
			return err
		default:
			return s.wire.reject("received")
		}
	}
}

// parcelled is one frame on its way from the goroutine that makes it to the one that
// writes it.
type parcelled struct {
	frame []byte
	// Of a part only:
	content    int // bytes, before compressing
	compressed bool
	done       func()
}

// send makes and writes the frames of all files.
func (s *Source) send(ctx context.Context, dir string) (sent Sent, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &packer{frames: make(chan parcelled, depth), free: make(chan struct{}, depth), plain: s.plain}
	// What fails here does not interrupt a write: the target can only be told between
	// two frames.
	var made error
	var making sync.WaitGroup
	making.Go(func() {
		defer close(p.frames)
		made = p.folder(ctx, dir)
	})
	defer func() {
		cancel(err)
		making.Wait()
		for f := range p.frames {
			f.done()
		}
		p.close()
		sent.Files, sent.Bytes = p.files, p.bytes
	}()
	for {
		from := time.Now()
		f, more := <-p.frames
		if !more {
			return sent, made
		}
		begin := time.Now()
		err := s.wire.write(ctx, f.frame)
		if f.content > 0 && err == nil {
			p.wrote(len(f.frame), f.compressed, begin.Sub(from), time.Since(begin))
			sent.Content += int64(f.content)
			if f.compressed {
				sent.Compressed += int64(f.content)
			}
		}
		sent.Wire += int64(len(f.frame))
		f.done()
		if err != nil {
			return sent, err
		}
	}
}

// packer makes frames of files.
type packer struct {
	frames chan parcelled
	free   chan struct{} // as many as parts are under way
	files  int
	bytes  int64
	plain  bool        // nothing is compressed
	zstd   *compressor // nil until it is needed

	mu   sync.Mutex
	pace pace
}

func (p *packer) wrote(bytes int, compressed bool, waited, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pace.wrote(bytes, compressed, waited, took)
}

func (p *packer) close() {
	if p.zstd != nil {
		p.zstd.close()
	}
}

func (p *packer) put(ctx context.Context, f parcelled) error {
	select {
	case p.frames <- f:
		return nil
	case <-ctx.Done():
		f.done()
		return context.Cause(ctx)
	}
}

func (p *packer) folder(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s is no file", filepath.Join(dir, e.Name()))
		}
		if err := p.file(ctx, filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("file %s: %w", e.Name(), err)
		}
	}
	return p.put(ctx, parcelled{frame: frame(frameEnd, nil), done: func() {}})
}

func (p *packer) file(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	name, size := filepath.Base(path), st.Size()
	head, err := pack(&nodev1.MoveMessage{Step: &nodev1.MoveMessage_File{File: &nodev1.MoveFile{Name: name, Size: size}}})
	if err != nil {
		return err
	}
	if err := p.put(ctx, parcelled{frame: head, done: func() {}}); err != nil {
		return err
	}
	check := newSum(name, size)
	data := extents{file: f, size: size}
	for at := int64(0); at < size; at += partSize {
		if at, err = data.next(at); err != nil {
			return err
		}
		if at >= size {
			break
		}
		if err := p.part(ctx, f, at, size, check); err != nil {
			return err
		}
	}
	p.files, p.bytes = p.files+1, p.bytes+size
	v := check.value()
	return p.put(ctx, parcelled{frame: frame(frameSum, v[:]), done: func() {}})
}

// part sends the part of a file that begins at a byte, unless it is all zeros.
func (p *packer) part(ctx context.Context, f *os.File, at, size int64, check sum) error {
	select {
	case p.free <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	r := borrow()
	done := func() { rooms.Put(r); <-p.free }
	content := r.content()[:min(partSize, size-at)]
	if _, err := f.ReadAt(content, at); err != nil {
		done()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	h := &part{encoding: encodingPlain, index: uint32(at / partSize)} //nolint:gosec // a file has fewer than 1<<32 parts
	n := h.pages.squeeze(content)
	if n == 0 {
		done()
		return nil
	}
	check.part(h, content[:n])
	if z := p.compress(h, content[:n]); z != nil {
		rooms.Put(r)
		return p.put(ctx, parcelled{frame: z.frame, content: n, compressed: true, done: func() { rooms.Put(z.room); <-p.free }})
	}
	return p.put(ctx, parcelled{frame: r.seal(h, n), content: n, done: done})
}

// extents finds where a file has holes, so that they need not be read.
type extents struct {
	file *os.File
	size int64
	end  int64 // of the data around the last answer
}

// next returns the first byte, from one that begins a part on, that begins a part with
// data in it; size if there is none.
func (e *extents) next(at int64) (int64, error) {
	if at < e.end {
		return at, nil
	}
	fd := int(e.file.Fd()) //nolint:gosec // a descriptor
	data, err := unix.Seek(fd, at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // nothing but a hole
		return e.size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP): // it knows no holes
		e.end = e.size
		return at, nil
	case err != nil:
		return 0, fmt.Errorf("find the holes: %w", err)
	}
	if e.end, err = unix.Seek(fd, data, unix.SEEK_HOLE); err != nil {
		return 0, fmt.Errorf("find the holes: %w", err)
	}
	return data &^ (partSize - 1), nil
}
