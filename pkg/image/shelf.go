package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/image/erofs"
	"github.com/sirocco-run/sirocco/pkg/runtime"
)

// The layout of the store's folder:
//
//	images/<hex of digest>/image.json   what the image is; written last
//	images/<hex of digest>/<generation>.erofs
//	images/<hex of digest>/root         the folder of a host image
//	images/<hex of digest>/used         its time is the last use; locked while in use
//	names/<hash of the reference>.json  what a name means
//	tmp/<random>                        locked by whoever works in it

// format is raised when images made by older code must be made anew.
const format = 2

// manifest is image.json.
type manifest struct {
	Digest string    `json:"digest"`
	Source string    `json:"source"`
	Kind   Kind      `json:"kind"`
	Config Config    `json:"config"`
	Added  time.Time `json:"added"`
	// Sum is the SHA-256 of the newest image file.
	Sum string `json:"sum,omitempty"`
	// Binds are those of a host image.
	Binds []runtime.Bind `json:"binds,omitempty"`
}

// alias is what a name means.
type alias struct {
	Name     string    `json:"name"`
	Digest   string    `json:"digest"`
	Imported bool      `json:"imported,omitempty"`
	At       time.Time `json:"at"`
}

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.opt.Dir}, parts...)...)
}

func (s *Store) imageDir(digest string) string {
	return s.path("images", strings.TrimPrefix(digest, "sha256:"))
}

// generation names the image files that hold the present supervisor.
func (s *Store) generation() (string, error) {
	sum, err := s.files.sum(s.opt.Supervisor)
	if err != nil {
		return "", fmt.Errorf("read supervisor: %w", err)
	}
	return fmt.Sprintf("%d-%s", format, sum[:16]), nil
}

func (s *Store) readManifest(digest string) (manifest, error) {
	var m manifest
	if !digestForm.MatchString(digest) {
		return m, fmt.Errorf("%w: bad digest %q", ErrInvalid, digest)
	}
	b, err := os.ReadFile(filepath.Join(s.imageDir(digest), "image.json"))
	if errors.Is(err, os.ErrNotExist) {
		return m, fmt.Errorf("%w: %s", ErrNotFound, digest)
	}
	if err != nil {
		return m, fmt.Errorf("read image %s: %w", digest, err)
	}
	if err := json.Unmarshal(b, &m); err != nil || m.Digest != digest {
		return m, fmt.Errorf("%w: %s: its description is damaged", ErrNotFound, digest)
	}
	return m, nil
}

// load returns an image that is on the disk. What fails the check is removed.
// One that was made for another supervisor is made anew from its own files.
// ErrNotFound says that it has to be pulled or imported.
func (s *Store) load(ctx context.Context, digest string) (Image, error) {
	m, err := s.readManifest(digest)
	if err != nil {
		return Image{}, err
	}
	img := Image{Ref: m.Source, Digest: digest, Source: m.Source, Config: m.Config}
	if m.Kind == KindHost {
		img.Rootfs = runtime.Rootfs{Dir: filepath.Join(s.imageDir(digest), "root"), Binds: m.Binds}
		return img, nil
	}
	gen, err := s.generation()
	if err != nil {
		return Image{}, err
	}
	file := filepath.Join(s.imageDir(digest), gen+".erofs")
	switch err := s.check(file); {
	case err == nil:
	case errors.Is(err, os.ErrNotExist):
		if err := s.regraft(ctx, m, gen); err != nil {
			return Image{}, err
		}
	default:
		return Image{}, err
	}
	st, err := os.Stat(file)
	if err != nil {
		return Image{}, fmt.Errorf("stat image: %w", err)
	}
	if m, err = s.readManifest(digest); err != nil { // it may just have been made anew
		return Image{}, err
	}
	img.Rootfs.EROFS, img.Size, img.Sum = file, diskBytes(st), m.Sum
	return img, nil
}

// check verifies an image file; a corrupt one is removed and reported as
// missing.
func (s *Store) check(file string) error {
	err := erofs.Verify(file)
	if errors.Is(err, erofs.ErrCorrupt) {
		s.log.Warn("image file is corrupt and is made anew", "file", file, "error", err)
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("remove corrupt image: %w", err)
		}
		return os.ErrNotExist
	}
	return err
}

// diskBytes is what a file really takes, holes not counted.
func diskBytes(st os.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}

func (s *Store) aliasPath(n string) string {
	sum := sha256.Sum256([]byte(n))
	return s.path("names", hex.EncodeToString(sum[:])+".json")
}

func (s *Store) readName(n string) (alias, error) {
	var a alias
	b, err := os.ReadFile(s.aliasPath(n))
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(b, &a); err != nil || a.Name != n || !digestForm.MatchString(a.Digest) {
		return alias{}, os.ErrNotExist
	}
	return a, nil
}

func (s *Store) writeName(a alias) error {
	return s.writeJSON(s.aliasPath(a.Name), a)
}

// writeJSON replaces a file by way of a temporary one.
func (s *Store) writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	f, err := os.CreateTemp(s.path("tmp"), "json-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), spaceError(err))
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", filepath.Base(path), spaceError(err))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, spaceError(err))
	}
	return nil
}

// spaceError marks a full disk as ErrNoSpace.
func spaceError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// workdir is a temporary folder that is locked, so that no other store takes it
// for what a crash left behind.
type workdir struct {
	path string
	lock *os.File
}

func (s *Store) newWorkdir() (*workdir, error) {
	path, err := os.MkdirTemp(s.path("tmp"), "work-*")
	if err != nil {
		return nil, fmt.Errorf("make temporary folder: %w", spaceError(err))
	}
	lock, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open temporary folder: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("lock temporary folder: %w", err)
	}
	return &workdir{path: path, lock: lock}, nil
}

func (w *workdir) file(name string) string { return filepath.Join(w.path, name) }

func (w *workdir) remove() {
	_ = os.RemoveAll(w.path)
	_ = w.lock.Close()
}

// sweepTemp removes temporary things that nobody works on. Those of the last
// minute stay: their owner may be about to lock them.
func (s *Store) sweepTemp() {
	list, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		return
	}
	for _, e := range list {
		p := s.path("tmp", e.Name())
		st, err := e.Info()
		if err != nil || time.Since(st.ModTime()) < time.Minute {
			continue
		}
		f, err := os.Open(p)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			s.log.Info("removing what an interrupted pull left", "path", p)
			_ = os.RemoveAll(p)
		}
		_ = f.Close()
	}
}

// fileHashes remembers the hashes of files that have not changed since.
type fileHashes struct {
	mu sync.Mutex
	m  map[string]fileHash
}

type fileHash struct {
	size  int64
	mtime time.Time
	ino   uint64
	sum   string
}

// sum returns the SHA-256 of the file's content, in hex.
func (h *fileHashes) sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	now := fileHash{size: st.Size(), mtime: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		now.ino = sys.Ino
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old, ok := h.m[path]; ok {
		now.sum = old.sum
		if now == old {
			return old.sum, nil
		}
	}
	d := sha256.New()
	if _, err := io.Copy(d, f); err != nil {
		return "", err
	}
	now.sum = hex.EncodeToString(d.Sum(nil))
	if h.m == nil {
		h.m = map[string]fileHash{}
	}
	h.m[path] = now
	return now.sum, nil
}
