package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

// ErrCorrupt says that a file is not an image, or not a whole one.
var ErrCorrupt = errors.New("erofs: corrupt image")

// Verify checks cheaply that the file is an image that Writer has written to
// its end: the header with its checksum, the features gVisor knows, the length
// and the root directory. It does not read the contents. Errors: ErrCorrupt,
// and what opening returns.
func Verify(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("stat image: %w", err)
	}
	var b [BlockSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return fmt.Errorf("%w: %s: read header: %w", ErrCorrupt, path, err)
	}
	le := binary.LittleEndian
	s := b[superOffset:]
	if le.Uint32(s) != magic {
		return fmt.Errorf("%w: %s: not an EROFS image", ErrCorrupt, path)
	}
	want := le.Uint32(s[4:])
	le.PutUint32(s[4:], 0)
	if checksum(s) != want {
		return fmt.Errorf("%w: %s: checksum of the header", ErrCorrupt, path)
	}
	if s[12] != 12 || le.Uint32(s[80:]) != 0 {
		return fmt.Errorf("%w: %s: unknown features", ErrCorrupt, path)
	}
	blocks, meta, nid := int64(le.Uint32(s[36:])), int64(le.Uint32(s[40:])), int64(le.Uint16(s[14:]))
	if st.Size() != blocks*BlockSize {
		return fmt.Errorf("%w: %s: has %d bytes, not %d", ErrCorrupt, path, st.Size(), blocks*BlockSize)
	}
	var inode [inodeSize]byte
	if _, err := f.ReadAt(inode[:], meta*BlockSize+nid*slotSize); err != nil {
		return fmt.Errorf("%w: %s: read root: %w", ErrCorrupt, path, err)
	}
	if le.Uint16(inode[4:])&ModeType != ModeDir {
		return fmt.Errorf("%w: %s: root is no directory", ErrCorrupt, path)
	}
	return nil
}
