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

// batch is the files of a folder, which may still be written.
type batch struct {
	dir string
	// growing is the name of the file that may be read before all are there; empty for
	// none.
	growing string
	// ahead is the name of the only file to be sent, ahead of the others; empty for all.
	ahead string
	// saved is closed once all files are there, or failed says why they are not.
	saved  chan struct{}
	failed error
	// beat is how often the target is told that more comes.
	beat time.Duration
}

// growthPause is between two looks at a file that grows: a small part of the time in
// which a MiB is written.
const growthPause = time.Millisecond / 4

// packer makes frames of files.
type packer struct {
	frames chan parcelled
	free   chan struct{} // as many as parts are under way
	files  int
	bytes  int64
	known  int64
	base   *base         // nil for none
	idle   time.Duration // since the last part
	plain  bool          // nothing is compressed
	zstd   *compressor   // nil until it is needed

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
		f.over()
		return context.Cause(ctx)
	}
}

// batch makes the frames of all files.
func (p *packer) batch(ctx context.Context, b *batch) error {
	if b.ahead != "" {
		if err := p.file(ctx, b.ahead, b); err != nil {
			return err
		}
		return p.put(ctx, parcelled{frame: frame(frameEnd, nil)})
	}
	if b.growing != "" {
		if err := p.early(ctx, b); err != nil {
			return err
		}
	}
	if _, err := p.await(ctx, b, func() (bool, error) { return false, nil }); err != nil {
		return err
	}
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s is no file", filepath.Join(b.dir, e.Name()))
		}
		if e.Name() == b.growing {
			continue
		}
		if err := p.file(ctx, e.Name(), b); err != nil {
			return err
		}
	}
	return p.put(ctx, parcelled{frame: frame(frameEnd, nil)})
}

// early makes the frames of the file that grows, if it ever comes to be.
func (p *packer) early(ctx context.Context, b *batch) error {
	path, there := filepath.Join(b.dir, b.growing), false
	_, err := p.await(ctx, b, func() (bool, error) {
		_, err := os.Stat(path)
		there = err == nil
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return there, err
	})
	if err != nil || !there {
		return err
	}
	return p.file(ctx, b.growing, b)
}

// await waits until enough says so, or all files are there: whole. Enough is asked once
// more then. The target is told now and then that more comes.
func (p *packer) await(ctx context.Context, b *batch, enough func() (bool, error)) (whole bool, err error) {
	begin := time.Now()
	told := begin
	defer func() { p.idle += time.Since(begin) }()
	for {
		select {
		case <-b.saved:
			whole = true
		default:
		}
		if done, err := enough(); done || err != nil || whole {
			if err == nil && whole {
				err = b.failed
			}
			return whole, err
		}
		if time.Since(told) >= b.beat {
			told = time.Now()
			if err := p.put(ctx, parcelled{frame: frame(frameProgress, nil)}); err != nil {
				return false, err
			}
		}
		select {
		case <-b.saved:
		case <-time.After(growthPause):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// file makes the frames of one file.
func (p *packer) file(ctx context.Context, name string, b *batch) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("file %s: %w", name, err)
		}
	}()
	f, err := os.Open(filepath.Join(b.dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	head, err := pack(&nodev1.MoveMessage{Step: &nodev1.MoveMessage_File{File: &nodev1.MoveFile{Name: name, Ahead: b.ahead != ""}}})
	if err != nil {
		return err
	}
	if err := p.put(ctx, parcelled{frame: head}); err != nil {
		return err
	}
	check := newSum(name)
	data := extents{file: f}
	for at := int64(0); ; at += partSize {
		whole, err := p.await(ctx, b, func() (bool, error) {
			st, err := f.Stat()
			if err == nil {
				data.size = st.Size()
			}
			return data.size >= at+partSize, err
		})
		if err != nil {
			return err
		}
		if whole {
			if at, err = data.next(at); err != nil {
				return err
			}
		}
		if at >= data.size {
			break
		}
		if err := p.part(ctx, f, at, data.size, b, check); err != nil {
			return err
		}
	}
	p.files, p.bytes = p.files+1, p.bytes+data.size
	return p.put(ctx, parcelled{frame: frame(frameSum, check.end(data.size))})
}

// part makes the frames of the part of a file that begins at a byte: none if it is all
// zeros.
func (p *packer) part(ctx context.Context, f *os.File, at, size int64, b *batch, check sum) error {
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
	var known pageMap
	switch {
	case b.ahead != "":
		p.base.add(h.index, content)
	case p.base != nil:
		var err error
		if known, err = p.refer(ctx, h.index, content, check); err != nil {
			done()
			return err
		}
	}
	n := h.pages.squeeze(content, &known)
	if n == 0 {
		done()
		return nil
	}
	check.part(h, content[:n])
	if z := p.compress(h, content[:n]); z != nil {
		rooms.Put(r)
		return p.put(ctx, parcelled{frame: z.frame, content: n, compressed: true, idle: p.rested(), done: func() { rooms.Put(z.room); <-p.free }})
	}
	return p.put(ctx, parcelled{frame: r.seal(h, n), content: n, idle: p.rested(), done: done})
}

// refer makes the frame that says which pages of a part the target has, if it has any.
func (p *packer) refer(ctx context.Context, index uint32, content []byte, check sum) (pageMap, error) {
	runs, found := p.base.find(content)
	if len(runs) == 0 {
		return found, nil
	}
	body := known(index, runs)
	check.known(body)
	for _, r := range runs {
		p.known += int64(r.count) * pageSize
	}
	return found, p.put(ctx, parcelled{frame: frame(frameKnown, body)})
}

// rested returns for how long there was nothing to do since it was last asked.
func (p *packer) rested() time.Duration {
	idle := p.idle
	p.idle = 0
	return idle
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
