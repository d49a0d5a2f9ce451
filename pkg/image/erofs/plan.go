package erofs

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"sort"
)

// maxDepth bounds the nesting of directories: the path of anything deeper
// could not be named in one system call.
const maxDepth = 2048

// placed is a node in the order in which inodes are written.
type placed struct{ node, parent *Node }

// plan gives every inode its place: a slot in the metadata area and, for large
// directories, blocks of their own.
type plan struct {
	w        *Writer
	slot     int64 // next free byte of the metadata area
	ino      uint32
	depth    int
	dirStart int64
	order    []placed
	live     map[uint32]bool // first blocks of content in use
}

func (p *plan) place(n, parent *Node, path string) error {
	if n.seen {
		if n.IsDir() {
			return fmt.Errorf("%w: directory %s has two places", ErrTree, path)
		}
		n.nlink++
		return nil
	}
	if p.ino == math.MaxUint32 {
		return fmt.Errorf("%w: too many files", ErrTree)
	}
	if p.order == nil {
		p.dirStart = int64(p.w.next) * BlockSize
	}
	p.ino++
	n.seen, n.ino, n.nlink, n.inline, n.block = true, p.ino, 1, false, 0
	tail := 0
	switch n.Mode & ModeType {
	case ModeDir:
		n.nlink = 2
		tail = direntBytes(n)
	case ModeSymlink:
		if tail = len(n.Target); tail == 0 || tail > MaxTarget {
			return fmt.Errorf("%w: symbolic link %s has a target of %d bytes", ErrTree, path, tail)
		}
	case ModeRegular:
		if n.Data.Size > 0 {
			p.live[n.Data.Block] = true
		}
	case ModeChar, ModeBlock, ModeFIFO, ModeSocket:
	default:
		return fmt.Errorf("%w: %s has no known type (mode %o)", ErrTree, path, n.Mode)
	}
	// Inline data may not cross a block, so what does not fit behind its inode
	// goes into blocks. Half a block is where inlining stops to save space.
	head := inodeSize + len(p.w.xattrs(n))
	if tail > 0 && head+tail <= BlockSize && (tail <= BlockSize/2 || n.IsSymlink()) {
		n.inline = true
		if p.slot%BlockSize+int64(head+tail) > BlockSize {
			p.slot = roundUp(p.slot, BlockSize)
		}
	} else if tail > 0 {
		if n.IsSymlink() {
			return fmt.Errorf("%w: symbolic link %s is too long", ErrTree, path)
		}
		n.block = p.w.next
		p.w.next += uint32(roundUp(int64(tail), BlockSize) / BlockSize)
		tail = 0
	}
	if p.slot%BlockSize+inodeSize > BlockSize {
		p.slot = roundUp(p.slot, BlockSize)
	}
	n.nid = uint64(p.slot / slotSize)
	p.slot = roundUp(p.slot+int64(head+tail), slotSize)
	p.order = append(p.order, placed{n, parent})
	if !n.IsDir() {
		return nil
	}
	if p.depth++; p.depth > maxDepth {
		return fmt.Errorf("%w: directories nest deeper than %d", ErrTree, maxDepth)
	}
	for _, name := range n.Names() {
		if len(name) == 0 || len(name) > MaxName || name == "." || name == ".." {
			return fmt.Errorf("%w: bad name %q", ErrTree, name)
		}
		child := n.children[name]
		if child.IsDir() {
			n.nlink++
		}
		if err := p.place(child, n, path+name+"/"); err != nil {
			return err
		}
	}
	p.depth--
	return nil
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// direntNames returns the names of a directory as they are stored: sorted by
// bytes, the two dot entries among them.
func direntNames(n *Node) []string {
	names := append(n.Names(), ".", "..")
	sort.Strings(names)
	return names
}

// direntGroups calls f with the names that share a block.
func direntGroups(names []string, f func(group []string, used int)) {
	for len(names) > 0 {
		used, i := 0, 0
		for i < len(names) && used+direntSize+len(names[i]) <= BlockSize {
			used += direntSize + len(names[i])
			i++
		}
		f(names[:i], used)
		names = names[i:]
	}
}

// direntBytes is the length of what direntBlocks returns.
func direntBytes(n *Node) int {
	total := 0
	direntGroups(direntNames(n), func(_ []string, used int) {
		total = int(roundUp(int64(total), BlockSize)) + used
	})
	return total
}

// direntBlocks returns the entries of a directory: full blocks, the last one as
// long as it is used.
func direntBlocks(n, parent *Node) []byte {
	var out []byte
	le := binary.LittleEndian
	direntGroups(direntNames(n), func(group []string, used int) {
		start := int(roundUp(int64(len(out)), BlockSize))
		out = append(out, make([]byte, start+used-len(out))...)
		b := out[start:]
		off := len(group) * direntSize
		for i, name := range group {
			target := n.children[name]
			switch name {
			case ".":
				target = n
			case "..":
				target = parent
			}
			d := b[i*direntSize:]
			le.PutUint64(d, target.nid)
			le.PutUint16(d[8:], uint16(off))
			d[10] = direntType(target.Mode)
			off += copy(b[off:], name)
		}
	})
	return out
}

func direntType(mode uint32) byte {
	switch mode & ModeType {
	case ModeRegular:
		return 1
	case ModeDir:
		return 2
	case ModeChar:
		return 3
	case ModeBlock:
		return 4
	case ModeFIFO:
		return 5
	case ModeSocket:
		return 6
	default:
		return 7
	}
}

// stream writes sequentially through a buffer; the first error sticks.
type stream struct {
	f   *os.File
	off int64
	buf []byte
	err error
}

func (s *stream) write(b []byte) {
	s.buf = append(s.buf, b...)
	s.off += int64(len(b))
	if len(s.buf) >= 1<<20 {
		s.flush()
	}
}

func (s *stream) padTo(off int64) {
	if off > s.off {
		s.write(make([]byte, off-s.off))
	}
}

func (s *stream) pad(to int64) { s.padTo(roundUp(s.off, to)) }

func (s *stream) flush() {
	if s.err == nil && len(s.buf) > 0 {
		_, s.err = s.f.WriteAt(s.buf, s.off-int64(len(s.buf)))
	}
	s.buf = s.buf[:0]
}
