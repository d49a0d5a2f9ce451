package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/image/erofs"
)

const (
	whiteoutPrefix = ".wh."
	opaque         = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh."
	paxXattr       = "SCHILY.xattr."
)

// Limits bound what the layers of one image may hold together.
type Limits struct {
	// Entries is the number of tar entries.
	Entries int
	// Bytes is the length of the unpacked tar streams, in bytes.
	Bytes int64
}

// Merger adds layers to a tree, the lowest first. It is not safe for concurrent
// use. After an error the tree is of no use.
type Merger struct {
	tree    *Tree
	out     *erofs.Writer
	left    Limits
	limits  Limits
	metaLen int64
}

// NewMerger returns a merger into an empty tree, whose contents go to out.
func NewMerger(out *erofs.Writer, limits Limits) *Merger {
	return &Merger{tree: NewTree(), out: out, limits: limits, left: limits}
}

// Tree returns the tree as merged so far.
func (m *Merger) Tree() *Tree { return m.tree }

// entry is a tar entry whose content is in the image already.
type entry struct {
	name string
	link string // target of a hard link
	node *erofs.Node
}

type hidden struct{ dir, base string }

// Apply reads one layer to its end and merges it. Errors: ErrInvalid,
// ErrTooLarge, erofs.ErrFull, the context's, and what reading and writing
// return.
func (m *Merger) Apply(ctx context.Context, r io.Reader) error {
	counted := &limited{ctx: ctx, r: r, left: &m.left.Bytes, max: m.limits.Bytes}
	tr := tar.NewReader(counted)
	var entries []entry
	var hides []hidden
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return malformed(err)
		}
		if m.left.Entries--; m.left.Entries < 0 {
			return fmt.Errorf("%w: more than %d entries", ErrTooLarge, m.limits.Entries)
		}
		if err := m.grow(h); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if base := path.Base(path.Clean("/" + h.Name)); strings.HasPrefix(base, whiteoutPrefix) {
			if base == opaque || !strings.HasPrefix(base, aufsPrefix) {
				hides = append(hides, hidden{path.Dir(path.Clean("/" + h.Name)), base})
			}
			continue
		}
		e, err := m.read(tr, h)
		if err != nil {
			return err
		}
		entries = append(entries, e)
	}
	// What stands behind the end of the archive counts too, and must be read
	// for the digest of the stream to be known.
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return malformed(err)
	}
	// Whiteouts come first, because they are about lower layers only.
	for _, h := range hides {
		if err := m.tree.whiteout(h.dir, h.base); err != nil {
			return err
		}
	}
	for _, e := range entries {
		err := ctx.Err()
		if err != nil {
			return err
		}
		if e.node == nil {
			err = m.tree.link(e.name, e.link)
		} else {
			err = m.tree.Put(e.name, e.node)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// maxMeta bounds the memory that names, link targets and attributes take, in
// bytes for all layers together.
const maxMeta = 512 << 20

func (m *Merger) grow(h *tar.Header) error {
	m.metaLen += int64(len(h.Name) + len(h.Linkname))
	for k, v := range h.PAXRecords {
		if strings.HasPrefix(k, paxXattr) {
			m.metaLen += int64(len(k) + len(v))
		}
	}
	if m.metaLen > maxMeta {
		return fmt.Errorf("%w: names and attributes of more than %d bytes", ErrTooLarge, maxMeta)
	}
	return nil
}

// read turns a tar entry into a node and stores its content.
func (m *Merger) read(tr *tar.Reader, h *tar.Header) (entry, error) {
	fail := func(format string, args ...any) (entry, error) {
		return entry{}, fmt.Errorf("%w: entry %q: "+format, append([]any{ErrInvalid, h.Name}, args...)...)
	}
	if _, err := split(h.Name); err != nil {
		return entry{}, err
	}
	if h.Uid < 0 || int64(h.Uid) >= math.MaxUint32 || h.Gid < 0 || int64(h.Gid) >= math.MaxUint32 {
		return fail("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	if h.Typeflag == tar.TypeLink {
		if _, err := split(h.Linkname); err != nil {
			return entry{}, err
		}
		return entry{name: h.Name, link: h.Linkname}, nil
	}
	perm := uint32(h.Mode) & erofs.ModePerm
	n := &erofs.Node{UID: uint32(h.Uid), GID: uint32(h.Gid)}
	if t := h.ModTime; t.Unix() > 0 {
		n.Sec, n.Nsec = t.Unix(), uint32(t.Nanosecond())
	}
	switch h.Typeflag {
	case tar.TypeDir:
		d := erofs.NewDir(perm)
		d.UID, d.GID, d.Sec, d.Nsec = n.UID, n.GID, n.Sec, n.Nsec
		n = d
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		n.Mode = erofs.ModeRegular | perm
		// The length of a sparse file is not bounded by that of the archive.
		ext, err := m.out.Add(tr)
		if err != nil {
			return entry{}, malformed(err)
		}
		n.Data = ext
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > erofs.MaxTarget {
			return fail("symbolic link with a target of %d bytes", len(h.Linkname))
		}
		if strings.IndexByte(h.Linkname, 0) >= 0 {
			return fail("symbolic link with a zero byte")
		}
		n.Mode, n.Target = erofs.ModeSymlink|0o777, h.Linkname
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return fail("device %d:%d is out of range", h.Devmajor, h.Devminor)
		}
		n.Mode = erofs.ModeChar | perm
		if h.Typeflag == tar.TypeBlock {
			n.Mode = erofs.ModeBlock | perm
		}
		n.Rdev = erofs.Device(uint32(h.Devmajor), uint32(h.Devminor))
	case tar.TypeFifo:
		n.Mode = erofs.ModeFIFO | perm
	default:
		return fail("type %q is unknown", h.Typeflag)
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, paxXattr); ok {
			if n.Xattrs == nil {
				n.Xattrs = map[string]string{}
			}
			n.Xattrs[name] = v
		}
	}
	return entry{name: h.Name, node: n}, nil
}

// malformed marks errors of the archive itself as ErrInvalid. Errors of the
// machine, the network and the limits pass unchanged.
func malformed(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrInsecurePath) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return fmt.Errorf("read layer: %w", err)
}

// limited counts what is read against a limit and ends with the context.
type limited struct {
	ctx  context.Context
	r    io.Reader
	left *int64
	max  int64
}

func (l *limited) Read(b []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := l.r.Read(b)
	if *l.left -= int64(n); *l.left < 0 {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, l.max)
	}
	return n, err
}
