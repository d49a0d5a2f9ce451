package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	readerofs "github.com/erofs/go-erofs"

	"github.com/sirocco-run/sirocco/pkg/image/erofs"
	"github.com/sirocco-run/sirocco/pkg/image/layer"
)

// build writes an image file from what fill puts into a tree, adds what every
// image has, and puts it on the shelf as m. What is the same gives the same file on
// every node: a sandbox that moves finds its root file system again.
func (s *Store) build(ctx context.Context, w *workdir, m manifest, fill func(context.Context, *erofs.Writer) (*layer.Tree, error)) (Image, error) {
	gen, err := s.generation()
	if err != nil {
		return Image{}, err
	}
	f, err := os.OpenFile(w.file(gen+".erofs"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return Image{}, fmt.Errorf("create image file: %w", spaceError(err))
	}
	defer f.Close()
	out := erofs.NewWriter(f, erofs.Options{MaxBytes: s.opt.MaxImageBytes})
	t, err := fill(ctx, out)
	if err != nil {
		return Image{}, buildError(err)
	}
	if err := s.complete(t, out, gen); err != nil {
		return Image{}, buildError(err)
	}
	if err := out.Finish(t.Root()); err != nil {
		return Image{}, buildError(err)
	}
	if err := f.Sync(); err != nil {
		return Image{}, fmt.Errorf("sync image file: %w", spaceError(err))
	}
	if m.Sum, err = sumOf(f); err != nil {
		return Image{}, err
	}
	m.Added = time.Now().UTC()
	if err := s.shelve(w, m, gen+".erofs"); err != nil {
		return Image{}, err
	}
	return s.load(ctx, m.Digest)
}

// sumOf returns the SHA-256 of a file.
func sumOf(f *os.File) (string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", fmt.Errorf("read image file: %w", err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("read image file: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// complete adds the supervisor and the mount points to a tree.
func (s *Store) complete(t *layer.Tree, out *erofs.Writer, gen string) error {
	t.Root().Remove(".sirocco")
	f, err := os.Open(s.opt.Supervisor)
	if err != nil {
		return fmt.Errorf("open supervisor: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	ext, err := out.Add(io.TeeReader(f, sum))
	if err != nil {
		return err
	}
	if !strings.HasSuffix(gen, hex.EncodeToString(sum.Sum(nil))[:16]) {
		return fmt.Errorf("%w: the supervisor was replaced while the image was built", ErrUnavailable)
	}
	if err := t.Put(SupervisorPath, &erofs.Node{Mode: erofs.ModeRegular | 0o555, Data: ext}); err != nil {
		return err
	}
	if _, err := t.Mkdir(SupervisorRun, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{"/proc", "/sys", "/dev", "/dev/shm"} {
		perm := uint32(0o755)
		if dir == "/dev/shm" {
			perm = 0o1777
		}
		if _, err := t.Mkdir(dir, perm); err != nil {
			return err
		}
	}
	if t.Lookup("/tmp") == nil {
		if _, err := t.Mkdir("/tmp", 0o1777); err != nil {
			return err
		}
	}
	// The supervisor writes these two when it starts. A symbolic link, which
	// often leads to a folder of systemd that no sandbox has, would stop it.
	for _, file := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if n := t.Lookup(file); n == nil || !n.IsRegular() {
			if err := t.Put(file, &erofs.Node{Mode: erofs.ModeRegular | 0o644}); err != nil {
				return err
			}
		}
	}
	return nil
}

// shelve moves the files of a finished image to their place. The description
// goes last: without it the image does not exist.
func (s *Store) shelve(w *workdir, m manifest, files ...string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode image: %w", err)
	}
	dir := s.imageDir(m.Digest)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make image folder: %w", spaceError(err))
	}
	for name, content := range map[string][]byte{"image.json": b, "used": nil} {
		if err := writeSynced(w.file(name), content); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "used")); errors.Is(err, os.ErrNotExist) {
		files = append(files, "used")
	}
	for _, name := range append(files, "image.json") {
		to := filepath.Join(dir, name)
		err := os.Rename(w.file(name), to)
		if st, serr := os.Stat(to); err != nil && serr == nil && st.IsDir() {
			err = nil // another store has put the same folder there
		}
		if err != nil {
			return fmt.Errorf("shelve image: %w", spaceError(err))
		}
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(dir))
}

func writeSynced(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), spaceError(err))
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), spaceError(err))
	}
	return nil
}

// regraft makes the image file for the present supervisor from one that was
// made for another, so that a new version of the platform needs neither the
// registry nor the archive again.
func (s *Store) regraft(ctx context.Context, m manifest, gen string) error {
	old, err := filepath.Glob(filepath.Join(s.imageDir(m.Digest), "*.erofs"))
	if err != nil {
		return fmt.Errorf("list image files: %w", err)
	}
	for _, file := range old {
		if s.check(file) != nil || strings.HasSuffix(file, "/"+gen+".erofs") {
			continue
		}
		s.log.Info("giving an image the present supervisor", "digest", m.Digest, "source", m.Source)
		w, err := s.newWorkdir()
		if err != nil {
			return err
		}
		defer w.remove()
		_, err = s.build(ctx, w, m, func(ctx context.Context, out *erofs.Writer) (*layer.Tree, error) {
			return readBack(ctx, file, out)
		})
		if err != nil {
			return fmt.Errorf("renew image %s: %w", m.Digest, err)
		}
		// Sandboxes that run from the old file keep it open.
		s.removeIfIdle(m.Digest, file)
		return nil
	}
	return fmt.Errorf("%w: %s: its file is missing", ErrNotFound, m.Digest)
}

// readBack reads an image file into a tree, copying the contents to out.
func readBack(ctx context.Context, file string, out *erofs.Writer) (*layer.Tree, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	src, err := readerofs.Open(f)
	if err != nil {
		return nil, fmt.Errorf("%w: open image: %w", ErrInvalid, err)
	}
	links, ok := src.(interface{ ReadLink(string) (string, error) })
	if !ok {
		return nil, errors.New("the EROFS reader cannot read symbolic links")
	}
	t := layer.NewTree()
	seen := map[int64]*erofs.Node{}
	err = fs.WalkDir(src, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if p == ".sirocco" {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*readerofs.Stat)
		if !ok {
			return fmt.Errorf("%s: no inode", p)
		}
		n := seen[st.Ino]
		if n == nil {
			n = &erofs.Node{Mode: unixMode(st.Mode), UID: st.UID, GID: st.GID,
				Sec: int64(st.Mtime), Nsec: st.MtimeNs, Rdev: st.Rdev}
			switch n.Mode & erofs.ModeType {
			case erofs.ModeRegular:
				r, err := src.Open(p)
				if err != nil {
					return err
				}
				n.Data, err = out.Add(r)
				_ = r.Close()
				if err != nil {
					return err
				}
			case erofs.ModeSymlink:
				if n.Target, err = links.ReadLink(p); err != nil {
					return err
				}
			}
			if !n.IsDir() && st.Nlink > 1 {
				seen[st.Ino] = n
			}
		}
		return putBack(t, p, n)
	})
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	return t, nil
}

// putBack places a node at exactly p: the parents are there already, so no
// symbolic link is in the way.
func putBack(t *layer.Tree, p string, n *erofs.Node) error {
	if p == "." {
		return t.Put("/", n)
	}
	return t.Put(p, n)
}

// unixMode is the mode of stat(2) for one of Go.
func unixMode(m fs.FileMode) uint32 {
	u := uint32(m.Perm())
	for bit, to := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			u |= to
		}
	}
	switch {
	case m.IsDir():
		return u | erofs.ModeDir
	case m&fs.ModeSymlink != 0:
		return u | erofs.ModeSymlink
	case m&fs.ModeCharDevice != 0:
		return u | erofs.ModeChar
	case m&fs.ModeDevice != 0:
		return u | erofs.ModeBlock
	case m&fs.ModeNamedPipe != 0:
		return u | erofs.ModeFIFO
	case m&fs.ModeSocket != 0:
		return u | erofs.ModeSocket
	default:
		return u | erofs.ModeRegular
	}
}
