package transfer

import (
	"encoding/binary"

	"github.com/zeebo/blake3"
)

const (
	sumSize = 32
	// endSize is size and checksum.
	endSize = 8 + sumSize
)

// sum computes the checksum of one file.
type sum struct{ h *blake3.Hasher }

func newSum(name string) sum {
	s := sum{blake3.New()}
	s.add(append(binary.BigEndian.AppendUint64(nil, uint64(len(name))), name...))
	return s
}

// part adds a part, its content uncompressed.
func (s sum) part(p *part, content []byte) {
	var head [partHead]byte
	p.put(head[:])
	s.add(head[1:]) // how it was encoded is no part of the file
	s.add(content)
}

// known adds the body of a frame of pages that the target has. Their content was checked
// when they came.
func (s sum) known(body []byte) {
	s.add([]byte{frameKnown})
	s.add(body)
}

func (s sum) add(b []byte) { _, _ = s.h.Write(b) } // never fails

// end returns the body of the frame that ends a file of a size: that and the checksum.
func (s sum) end(size int64) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, endSize), uint64(size)) //nolint:gosec // sizes are not negative
	s.add(b)
	return s.h.Sum(b)
}
