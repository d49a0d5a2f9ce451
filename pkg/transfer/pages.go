package transfer

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"sync"
)

const (
	pageSize = 4 << 10
	partSize = 1 << 20
	// partPages is how many pages a part has.
	partPages = partSize / pageSize
	mapSize   = partPages / 8
	// partHead is encoding, index and map.
	partHead = 1 + 4 + mapSize
	// maxParts is how many parts a file can have: their index has 32 bits.
	maxParts = 1 << 32
	maxSize  = maxParts * partSize
)

// Encodings of a part's content.
const (
	encodingPlain = 0
	encodingZstd  = 1
)

// pageMap has a bit for each page of a part.
type pageMap [mapSize]byte

func (m *pageMap) set(page int)      { m[page/8] |= 1 << (page % 8) }
func (m *pageMap) has(page int) bool { return m[page/8]&(1<<(page%8)) != 0 }

var zeroPage [pageSize]byte

func isZero(page []byte) bool { return bytes.Equal(page, zeroPage[:len(page)]) }

// squeeze moves the pages of a part that are not zeros, nor among those that are left
// out, to its beginning, notes them in the map and returns how many bytes they have.
func (m *pageMap) squeeze(part []byte, leaveOut *pageMap) int {
	n := 0
	for page, at := 0, 0; at < len(part); page, at = page+1, at+pageSize {
		content := part[at:min(at+pageSize, len(part))]
		if leaveOut.has(page) || isZero(content) {
			continue
		}
		m.set(page)
		if n != at {
			copy(part[n:], content)
		}
		n += len(content)
	}
	return n
}

// meets says whether two maps have a page in common.
func (m *pageMap) meets(other *pageMap) bool {
	for i := range m {
		if m[i]&other[i] != 0 {
			return true
		}
	}
	return false
}

// fit says where in the part n bytes of content end, by its map, and how many bytes the
// last page lacks, which only the last of a file may. ok is false if it can't be so many.
func (m *pageMap) fit(n int) (end int64, missing int, ok bool) {
	count, last := 0, 0
	for i, b := range m {
		if b != 0 {
			count, last = count+bits.OnesCount8(b), i*8+bits.Len8(b)
		}
	}
	missing = count*pageSize - n
	return int64(last*pageSize - missing), missing, count > 0 && missing >= 0 && missing < pageSize
}

// runs calls yield with each row of pages of the content and where in the part it
// belongs, until that fails. The content has to fit.
func (m *pageMap) runs(content []byte, yield func(at int, run []byte) error) error {
	for page := 0; page < mapSize*8 && len(content) > 0; {
		first := page
		for page < mapSize*8 && m.has(page) {
			page++
		}
		if page > first {
			n := min((page-first)*pageSize, len(content))
			if err := yield(first*pageSize, content[:n]); err != nil {
				return err
			}
			content = content[n:]
		}
		page++
	}
	return nil
}

// part is the head of one part of a file.
type part struct {
	encoding byte
	index    uint32
	pages    pageMap
}

func (p *part) put(b []byte) {
	b[0] = p.encoding
	binary.BigEndian.PutUint32(b[1:], p.index)
	copy(b[5:], p.pages[:])
}

// parsePart splits the body of a frame.
func parsePart(body []byte) (p part, content []byte, err error) {
	if len(body) <= partHead {
		return p, nil, blame(ErrFormat, "a part without content")
	}
	p.encoding, p.index = body[0], binary.BigEndian.Uint32(body[1:])
	copy(p.pages[:], body[5:])
	return p, body[partHead:], nil
}

// room is the space for one frame with a part, its content at a place that suits the
// processor.
type room struct{ frame [contentAt + partSize]byte }

const contentAt = 64

// rooms are shared by all transfers.
var rooms = sync.Pool{New: func() any { return new(room) }}

func borrow() *room { return rooms.Get().(*room) } //nolint:errcheck // the pool holds nothing else

func (r *room) content() []byte { return r.frame[contentAt:] }

// seal puts the heads before the content, which has n bytes, and returns the frame.
func (r *room) seal(p *part, n int) []byte {
	b := r.frame[contentAt-partHead-frameHead : contentAt+n]
	putHead(b, framePart, partHead+n)
	p.put(b[frameHead:])
	return b
}
