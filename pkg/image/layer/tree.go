// Package layer merges the layers of a container image, which are tar streams,
// into one tree of an EROFS image.
//
// It follows the image specification of OCI: entries replace what lower layers
// have of the same name, except that a directory keeps its entries when a
// directory replaces it; whiteouts hide what lower layers have, never what
// their own layer has, wherever in the archive they stand. Names are resolved
// inside the tree, symbolic links included, as a process with the tree for its
// root would; no name reaches anything outside, and nothing is ever read from
// or written to the file system of this machine but the image being built.
package layer

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/image/erofs"
)

// ErrInvalid says that a layer is malformed or does something no layer may.
var ErrInvalid = errors.New("layer: invalid")

// ErrTooLarge says that a limit was passed.
var ErrTooLarge = errors.New("layer: too large")

const (
	maxPath     = 4096
	maxSymlinks = 40
	implicit    = 0o755
)

// Tree is a file system in the making.
type Tree struct{ root *erofs.Node }

// NewTree returns an empty tree.
func NewTree() *Tree { return &Tree{root: erofs.NewDir(implicit)} }

// Root returns the root directory.
func (t *Tree) Root() *erofs.Node { return t.root }

// split cleans a name and returns its components. ".." at the root stays there.
func split(name string) ([]string, error) {
	if len(name) > maxPath {
		return nil, fmt.Errorf("%w: name of %d bytes", ErrInvalid, len(name))
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("%w: name with a zero byte", ErrInvalid)
	}
	clean := path.Clean("/" + name)
	if clean == "/" {
		return nil, nil
	}
	parts := strings.Split(clean[1:], "/")
	for _, p := range parts {
		if len(p) > erofs.MaxName {
			return nil, fmt.Errorf("%w: name component of %d bytes", ErrInvalid, len(p))
		}
	}
	return parts, nil
}

// walk follows components from the root to a directory, through symbolic links.
// Missing directories are made if create is set; otherwise the result is nil where
// the components lead to no directory, round in circles too.
func (t *Tree) walk(parts []string, create bool) (*erofs.Node, error) {
	stack := []*erofs.Node{t.root}
	links := 0
	for steps := 0; len(parts) > 0; steps++ {
		if steps > maxPath {
			return nil, fmt.Errorf("%w: symbolic links make too long a path", ErrInvalid)
		}
		name := parts[0]
		parts = parts[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			continue
		}
		dir := stack[len(stack)-1]
		next := dir.Child(name)
		switch {
		case next == nil && !create:
			return nil, nil
		case next == nil:
			next = erofs.NewDir(implicit)
			dir.Set(name, next)
			stack = append(stack, next)
		case next.IsDir():
			stack = append(stack, next)
		case next.IsSymlink():
			if links++; links > maxSymlinks && !create {
				return nil, nil
			} else if links > maxSymlinks {
				return nil, fmt.Errorf("%w: too many symbolic links on the way to %q", ErrInvalid, name)
			}
			if strings.HasPrefix(next.Target, "/") {
				stack = stack[:1]
			}
			rest := strings.Split(next.Target, "/")
			parts = append(rest, parts...)
		case !create:
			return nil, nil
		default:
			return nil, fmt.Errorf("%w: %q is not a directory", ErrInvalid, name)
		}
		if len(stack) > maxPath/2 {
			return nil, fmt.Errorf("%w: directories nest too deep", ErrInvalid)
		}
	}
	return stack[len(stack)-1], nil
}

// Lookup returns the node of that name without following it if it is itself a
// symbolic link, or nil when there is none.
func (t *Tree) Lookup(name string) *erofs.Node {
	parts, err := split(name)
	if err != nil {
		return nil
	}
	if len(parts) == 0 {
		return t.root
	}
	dir, err := t.walk(parts[:len(parts)-1], false)
	if err != nil || dir == nil {
		return nil
	}
	return dir.Child(parts[len(parts)-1])
}

// Mkdir returns the directory of that name, making it and its parents (0755,
// root) if need be. Anything else in the place of the last component, a
// symbolic link too, gives way to the directory. Errors: ErrInvalid.
func (t *Tree) Mkdir(name string, perm uint32) (*erofs.Node, error) {
	parts, err := split(name)
	if err != nil {
		return nil, err
	}
	if len(parts) == 0 {
		return t.root, nil
	}
	dir, err := t.walk(parts[:len(parts)-1], true)
	if err != nil {
		return nil, fmt.Errorf("make directory %q: %w", name, err)
	}
	last := parts[len(parts)-1]
	if n := dir.Child(last); n != nil && n.IsDir() {
		return n, nil
	}
	n := erofs.NewDir(perm)
	dir.Set(last, n)
	return n, nil
}

// Put places a node at a name, making parent directories and replacing what was
// there, but a directory put on a directory keeps the entries. Errors:
// ErrInvalid.
func (t *Tree) Put(name string, n *erofs.Node) error {
	parts, err := split(name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if !n.IsDir() {
			return fmt.Errorf("%w: the root must be a directory", ErrInvalid)
		}
		n.Adopt(t.root)
		t.root = n
		return nil
	}
	dir, err := t.walk(parts[:len(parts)-1], true)
	if err != nil {
		return fmt.Errorf("put %q: %w", name, err)
	}
	last := parts[len(parts)-1]
	if old := dir.Child(last); old != nil && old != n && old.IsDir() && n.IsDir() {
		n.Adopt(old)
	}
	dir.Set(last, n)
	return nil
}

// link makes name another name of target.
func (t *Tree) link(name, target string) error {
	n := t.Lookup(target)
	if n == nil {
		return fmt.Errorf("%w: hard link %q to %q, which does not exist", ErrInvalid, name, target)
	}
	if n.IsDir() {
		return fmt.Errorf("%w: hard link %q to the directory %q", ErrInvalid, name, target)
	}
	return t.Put(name, n)
}

// whiteout hides what is at name. Where nothing is, nothing happens.
func (t *Tree) whiteout(dirName, base string) error {
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return fmt.Errorf("%w: whiteout %q in %q hides nothing", ErrInvalid, base, dirName)
	}
	parts, err := split(dirName)
	if err != nil {
		return err
	}
	dir, err := t.walk(parts, false)
	if err != nil || dir == nil {
		return err
	}
	if base == opaque {
		dir.Clear()
		return nil
	}
	dir.Remove(hidden)
	return nil
}
