package transfer

import (
	"encoding/binary"

	"github.com/zeebo/blake3"
)

const sumSize = 32

// sum computes the checksum of one file.
type sum struct{ h *blake3.Hasher }

func newSum(name string, size int64) sum {
	s := sum{blake3.New()}
	b := binary.BigEndian.AppendUint64(nil, uint64(size)) //nolint:gosec // sizes are not negative
	b = binary.BigEndian.AppendUint64(b, uint64(len(name)))
	s.add(append(b, name...))
	return s
}

// part adds a part, its content uncompressed.
func (s sum) part(p *part, content []byte) {
	var head [partHead]byte
	p.put(head[:])
	s.add(head[1:]) // how it was encoded is no part of the file
	s.add(content)
}

func (s sum) add(b []byte) { _, _ = s.h.Write(b) } // never fails

func (s sum) value() [sumSize]byte {
	var v [sumSize]byte
	s.h.Sum(v[:0])
	return v
}
