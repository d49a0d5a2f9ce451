package transfer

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"path/filepath"
)

// base is what the source knows of a file that the target has already: where in it which
// page is.
type base struct {
	// Two hashes of 64 bits, of seeds that nobody knows: that two different pages of a
	// sandbox of 4 GiB are taken for the same has a probability of 2^-88.
	seeds [2]maphash.Seed
	pages map[pageHash]uint32
}

type pageHash [2]uint64

func newBase() *base {
	return &base{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, pages: map[pageHash]uint32{}}
}

func (b *base) hash(page []byte) pageHash {
	return pageHash{maphash.Bytes(b.seeds[0], page), maphash.Bytes(b.seeds[1], page)}
}

// add notes the pages of a part of the file.
func (b *base) add(index uint32, part []byte) {
	for at := 0; at+pageSize <= len(part); at += pageSize {
		b.pages[b.hash(part[at:at+pageSize])] = index*partPages + uint32(at/pageSize) //nolint:gosec // within a part
	}
}

// find returns where the pages of a part are in the file, as runs, and which they are.
// Those of zeros are nowhere: they are not sent at all.
func (b *base) find(part []byte) (runs []run, found pageMap) {
	for page := 0; (page+1)*pageSize <= len(part); page++ {
		content := part[page*pageSize:][:pageSize]
		if isZero(content) {
			continue
		}
		from, known := b.pages[b.hash(content)]
		if !known {
			continue
		}
		found.set(page)
		if n := len(runs); n > 0 && runs[n-1].continues(page, from) {
			runs[n-1].count++
		} else {
			runs = append(runs, run{page, 1, from})
		}
	}
	return runs, found
}

// run is a row of pages that are in the base in the same order.
type run struct {
	page, count int    // in the part
	from        uint32 // page of the base
}

func (r run) continues(page int, from uint32) bool {
	return page == r.page+r.count && from == r.from+uint32(r.count) //nolint:gosec // at most partPages
}

const (
	// runSize is page and count less one (1 byte each) and the page of the base.
	runSize = 1 + 1 + 4
	// maxKnown is the longest body of a frame of runs, behind its index.
	maxKnown = 4 + partPages*runSize
)

// known makes the body of the frame that says which pages of a part the target has.
func known(index uint32, runs []run) []byte {
	body := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(runs)*runSize), index)
	for _, r := range runs {
		body = append(body, byte(r.page), byte(r.count-1))
		body = binary.BigEndian.AppendUint32(body, r.from)
	}
	return body
}

// parseKnown reads it. Runs are in order and do not overlap.
func parseKnown(body []byte) (index uint32, runs []run, found pageMap, err error) {
	if len(body) < 4+runSize || (len(body)-4)%runSize != 0 {
		return 0, nil, found, blame(ErrFormat, "runs of pages in %d bytes", len(body))
	}
	index = binary.BigEndian.Uint32(body)
	least := 0
	for b := body[4:]; len(b) > 0; b = b[runSize:] {
		r := run{int(b[0]), int(b[1]) + 1, binary.BigEndian.Uint32(b[2:])}
		if r.page < least || r.page+r.count > partPages {
			return 0, nil, found, blame(ErrFormat, "runs of pages out of order, or behind the end of their part")
		}
		least = r.page + r.count
		for page := r.page; page < least; page++ {
			found.set(page)
		}
		runs = append(runs, r)
	}
	return index, runs, found, nil
}

// Ahead sends a file of which most will be in one that FilesWhile sends, and waits until
// the target has it: of what is the same then, only where it was is sent. It is called
// before FilesWhile, at most once. If it fails here, the target is told. The file is not
// needed any more when it returns.
//
// It takes memory while the source lives, some 50 bytes for each page of 4 KiB.
func (s *Source) Ahead(ctx context.Context, path string) (Sent, error) {
	b := &batch{dir: filepath.Dir(path), ahead: filepath.Base(path), saved: make(chan struct{}), beat: s.wire.stall / 4}
	close(b.saved)
	s.base = newBase()
	return s.files(ctx, b)
}

// keep takes a file for the base: it has no name any more, and is gone with the unpacker.
func (u *unpacker) keep(f *openFile) error {
	if err := u.root.Remove(f.name); err != nil {
		return diskError(err)
	}
	u.made = u.made[:0]
	u.base = f
	return nil
}

// known copies pages of the base.
func (u *unpacker) known(body []byte) error {
	index, runs, found, err := parseKnown(body)
	if err != nil {
		return err
	}
	f, at := u.open, int64(index)*partSize
	switch {
	case u.base == nil:
		return blame(ErrFormat, "pages of a file that was not sent")
	case int64(index) < f.least || int64(index) < f.leastKnown || f.short:
		return blame(ErrFormat, "part %d out of order", index)
	}
	last := runs[len(runs)-1]
	f.end = at + int64(last.page+last.count)*pageSize
	if err := u.fits(f.end); err != nil {
		return err
	}
	f.least, f.leastKnown, f.known = int64(index), int64(index)+1, found
	f.check.known(body)
	r := borrow()
	defer rooms.Put(r)
	for _, run := range runs {
		from := int64(run.from) * pageSize
		content := r.content()[:run.count*pageSize]
		if from+int64(len(content)) > u.base.end {
			return blame(ErrFormat, "pages behind the end of the file that was sent ahead")
		}
		if _, err := u.base.ReadAt(content, from); err != nil {
			return diskError(err)
		}
		if _, err := f.WriteAt(content, at+int64(run.page)*pageSize); err != nil {
			return diskError(err)
		}
		u.content += int64(len(content))
		u.reused += int64(len(content))
	}
	return nil
}
