// Package erofs writes EROFS images that gVisor can boot, straight from a
// stream of file contents.
//
// The contents of files are appended to the image while they arrive, the tree
// is written at the end, so that nothing but the tree is held in memory and no
// byte is copied twice. Only the flat layouts are written: uncompressed files
// without inline tails, which gVisor maps into its page cache as they are, and
// directories and symbolic links inline where they fit. Hard links share one
// inode. The library github.com/erofs/go-erofs is the independent reader that
// the tests compare with; its writer has no hard links and keeps small files in
// memory until the end.
//
// The format is the one of https://docs.kernel.org/filesystems/erofs.html.
package erofs

import (
	"errors"
	"slices"
)

// BlockSize is the block size of all images written here, in bytes.
const BlockSize = 4096

// Limits of the format, and of the systems that read it.
const (
	// MaxName is the longest name of a directory entry, in bytes.
	MaxName = 255
	// MaxTarget is the longest target of a symbolic link, in bytes.
	MaxTarget = 4095
)

// File types and permission bits of Node.Mode, as in the mode of stat(2).
const (
	ModeType    = 0o170000
	ModeRegular = 0o100000
	ModeDir     = 0o040000
	ModeSymlink = 0o120000
	ModeChar    = 0o020000
	ModeBlock   = 0o060000
	ModeFIFO    = 0o010000
	ModeSocket  = 0o140000
	ModePerm    = 0o007777
)

// ErrTree says that a tree cannot be written as an image.
var ErrTree = errors.New("erofs: tree cannot be written")

// Extent is where the content of a regular file lies in the image.
type Extent struct {
	// Block is the number of the first block.
	Block uint32
	// Size is the length of the content in bytes.
	Size int64
}

// blocks is how many blocks the extent occupies.
func (e Extent) blocks() int64 { return (e.Size + BlockSize - 1) / BlockSize }

// Node is one inode. A node other than a directory may be the child of several
// directories, or of one under several names: these are hard links.
type Node struct {
	// Mode holds the file type and the permission bits.
	Mode     uint32
	UID, GID uint32
	// Sec and Nsec are the time of the last modification.
	Sec  int64
	Nsec uint32
	// Rdev is the device number of a character or block device, as Linux
	// encodes it on disk (see Device).
	Rdev uint32
	// Data is the content of a regular file.
	Data Extent
	// Target is where a symbolic link points.
	Target string
	// Xattrs are extended attributes by full name. They are only written when
	// the Writer is told to: gVisor refuses to open an inode that has any.
	Xattrs map[string]string

	children map[string]*Node

	// Set while the image is being laid out.
	nid    uint64
	ino    uint32
	nlink  uint32
	block  uint32
	inline bool
	seen   bool
}

// NewDir returns an empty directory with the given permission bits, of root.
func NewDir(perm uint32) *Node {
	return &Node{Mode: ModeDir | perm&ModePerm, children: map[string]*Node{}}
}

// IsDir reports whether the node is a directory.
func (n *Node) IsDir() bool { return n.Mode&ModeType == ModeDir }

// IsSymlink reports whether the node is a symbolic link.
func (n *Node) IsSymlink() bool { return n.Mode&ModeType == ModeSymlink }

// IsRegular reports whether the node is a regular file.
func (n *Node) IsRegular() bool { return n.Mode&ModeType == ModeRegular }

// Child returns the entry of that name, or nil.
func (n *Node) Child(name string) *Node { return n.children[name] }

// Set makes child the entry of that name, replacing what was there with all
// that is below it. The node must be a directory.
func (n *Node) Set(name string, child *Node) {
	if n.children == nil {
		n.children = map[string]*Node{}
	}
	n.children[name] = child
}

// Remove removes the entry of that name with all that is below it.
func (n *Node) Remove(name string) { delete(n.children, name) }

// Clear removes all entries.
func (n *Node) Clear() { n.children = map[string]*Node{} }

// Adopt gives n, a directory without entries, those of old, which loses them.
func (n *Node) Adopt(old *Node) {
	n.children, old.children = old.children, nil
}

// Names returns the names of the entries, sorted.
func (n *Node) Names() []string {
	names := make([]string, 0, len(n.children))
	for name := range n.children {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Device returns the on-disk encoding of a device number.
func Device(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}
