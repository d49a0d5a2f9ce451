package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	magic            = 0xe0f5e1e2
	superOffset      = 1024
	superSize        = 128
	inodeSize        = 64
	slotSize         = 32
	direntSize       = 12
	compatChecksum   = 1
	compatMtime      = 2
	layoutPlain      = 0
	layoutInline     = 2
	inodeExtended    = 1
	xattrHeaderSize  = 12
	xattrEntryHeader = 4
	// firstSlot keeps inode number 0, which means "no inode" to some programs,
	// out of use.
	firstSlot = 2
	// maxBlocks leaves room for the tree behind the content.
	maxBlocks = math.MaxUint32 - 1<<24
)

// ErrFull says that an image would have grown past its limit.
var ErrFull = errors.New("erofs: image too large")

// Options of a Writer.
type Options struct {
	// MaxBytes limits the content that may be added, in bytes. Zero: none.
	MaxBytes int64
	// Xattrs writes extended attributes. gVisor cannot open inodes that have
	// some, so images for it must do without.
	Xattrs bool
}

// Writer writes one image into a file. It is not safe for concurrent use.
type Writer struct {
	f     *os.File
	opt   Options
	next  uint32 // the next free block
	added int64  // content so far, in bytes
	dead  []Extent
	buf   []byte
}

// NewWriter returns a writer into f, which must be empty. The caller closes f,
// and must sync it before relying on it.
func NewWriter(f *os.File, opt Options) *Writer {
	return &Writer{f: f, opt: opt, next: 1, buf: make([]byte, 256<<10)}
}

// Add appends the content of one file, until the end of r. Errors: ErrFull, and
// what r and the file return.
func (w *Writer) Add(r io.Reader) (Extent, error) {
	ext := Extent{Block: w.next}
	off := int64(w.next) * BlockSize
	for {
		n, err := fill(r, w.buf)
		if n > 0 {
			ext.Size += int64(n)
			w.added += int64(n)
			if w.opt.MaxBytes > 0 && w.added > w.opt.MaxBytes {
				return Extent{}, fmt.Errorf("%w: more than %d bytes", ErrFull, w.opt.MaxBytes)
			}
			if off/BlockSize > maxBlocks {
				return Extent{}, fmt.Errorf("%w: more than %d blocks", ErrFull, maxBlocks)
			}
			// The buffer is a multiple of the block size, so only the last
			// write of a file needs padding.
			end := (n + BlockSize - 1) / BlockSize * BlockSize
			clear(w.buf[n:end])
			if _, werr := w.f.WriteAt(w.buf[:end], off); werr != nil {
				return Extent{}, fmt.Errorf("write content: %w", werr)
			}
			off += int64(end)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Extent{}, err
		}
	}
	w.next += uint32(ext.blocks())
	if ext.Size == 0 {
		ext.Block = 0
	}
	w.dead = append(w.dead, ext)
	return ext, nil
}

// fill reads until the buffer is full. It differs from io.ReadFull in that the
// io.ErrUnexpectedEOF of a truncated archive stays an error.
func fill(r io.Reader, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := r.Read(b[n:])
		n += m
		if err != nil {
			if err == io.EOF && n == 0 {
				return 0, io.EOF
			}
			return n, err
		}
	}
	return n, nil
}

// Finish writes the tree below root and the header. Content that the tree does
// not refer to gives its disk space back. Errors: ErrTree, and what the file
// returns.
func (w *Writer) Finish(root *Node) error {
	if !root.IsDir() {
		return fmt.Errorf("%w: root is no directory", ErrTree)
	}
	p := &plan{w: w, slot: firstSlot * slotSize, live: map[uint32]bool{}}
	if err := p.place(root, root, "/"); err != nil {
		return err
	}
	meta := w.next
	out := &stream{f: w.f, off: p.dirStart}
	for _, d := range p.order {
		if d.node.IsDir() && !d.node.inline {
			out.write(direntBlocks(d.node, d.parent))
			out.pad(BlockSize)
		}
	}
	out.flush()
	out.off = int64(meta) * BlockSize
	for _, d := range p.order {
		out.padTo(int64(meta)*BlockSize + int64(d.node.nid)*slotSize)
		out.write(w.inode(d.node, d.parent))
	}
	out.pad(BlockSize)
	out.flush()
	if out.err != nil {
		return fmt.Errorf("write tree: %w", out.err)
	}
	blocks := out.off / BlockSize
	if blocks > math.MaxUint32 {
		return fmt.Errorf("%w: %d blocks", ErrFull, blocks)
	}
	if _, err := w.f.WriteAt(w.header(root, meta, uint32(blocks), uint64(len(p.order))), 0); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	w.punch(p.live)
	return nil
}

// punch frees the blocks of content that is in no tree. That only saves space,
// so a file system that cannot do it is no failure.
func (w *Writer) punch(live map[uint32]bool) {
	for _, e := range w.dead {
		if e.Size == 0 || live[e.Block] {
			continue
		}
		err := unix.Fallocate(int(w.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
			int64(e.Block)*BlockSize, e.blocks()*BlockSize)
		if err != nil {
			return
		}
	}
}

func (w *Writer) header(root *Node, meta, blocks uint32, inodes uint64) []byte {
	b := make([]byte, BlockSize)
	s := b[superOffset:]
	le := binary.LittleEndian
	le.PutUint32(s[0:], magic)
	le.PutUint32(s[8:], compatChecksum|compatMtime)
	s[12] = 12 // log2 of the block size
	le.PutUint16(s[14:], uint16(root.nid))
	le.PutUint64(s[16:], inodes)
	// At 24 is the time of the build: none, so that the same tree gives the same file.
	le.PutUint32(s[36:], blocks)
	le.PutUint32(s[40:], meta)
	le.PutUint32(s[4:], checksum(s))
	return b
}

// checksum is that of the header block from the superblock on, whose checksum
// field must be zero.
func checksum(super []byte) uint32 {
	return ^crc32.Checksum(super, crc32.MakeTable(crc32.Castagnoli))
}

// inode returns the inode with its attributes and its inline data.
func (w *Writer) inode(n, parent *Node) []byte {
	xattrs := w.xattrs(n)
	b := make([]byte, inodeSize, inodeSize+len(xattrs))
	le := binary.LittleEndian
	layout, size, block := uint16(layoutPlain), int64(0), n.block
	var tail []byte
	switch n.Mode & ModeType {
	case ModeRegular:
		size, block = n.Data.Size, n.Data.Block
	case ModeDir:
		data := direntBlocks(n, parent)
		size = int64(len(data))
		if n.inline {
			tail = data
		}
	case ModeSymlink:
		size, tail = int64(len(n.Target)), []byte(n.Target)
	case ModeChar, ModeBlock:
		block = n.Rdev
	}
	if n.inline {
		layout = layoutInline
	}
	le.PutUint16(b[0:], inodeExtended|layout<<1)
	if len(xattrs) > 0 {
		le.PutUint16(b[2:], uint16((len(xattrs)-xattrHeaderSize)/4+1))
	}
	le.PutUint16(b[4:], uint16(n.Mode))
	le.PutUint64(b[8:], uint64(size))
	le.PutUint32(b[16:], block)
	le.PutUint32(b[20:], n.ino)
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.Sec))
	le.PutUint32(b[40:], n.Nsec)
	le.PutUint32(b[44:], n.nlink)
	return append(append(b, xattrs...), tail...)
}

// xattrPrefixes are the name spaces that the format knows by number.
var xattrPrefixes = []struct {
	prefix string
	index  byte
}{{"user.", 1}, {"trusted.", 4}, {"security.", 6}}

// xattrs returns the attribute area of an inode, empty when it has none. Names
// outside the known name spaces are left out.
func (w *Writer) xattrs(n *Node) []byte {
	if !w.opt.Xattrs || len(n.Xattrs) == 0 {
		return nil
	}
	names := make([]string, 0, len(n.Xattrs))
	for name := range n.Xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	b := make([]byte, xattrHeaderSize)
	for _, name := range names {
		value := n.Xattrs[name]
		for _, p := range xattrPrefixes {
			if len(name) <= len(p.prefix) || name[:len(p.prefix)] != p.prefix {
				continue
			}
			suffix := name[len(p.prefix):]
			if len(suffix) > math.MaxUint8 || len(value) > math.MaxUint16 || len(b)+len(suffix)+len(value) > math.MaxUint16 {
				continue
			}
			b = append(b, byte(len(suffix)), p.index, byte(len(value)), byte(len(value)>>8))
			b = append(append(b, suffix...), value...)
			for len(b)%4 != 0 {
				b = append(b, 0)
			}
		}
	}
	if len(b) == xattrHeaderSize {
		return nil
	}
	return b
}
