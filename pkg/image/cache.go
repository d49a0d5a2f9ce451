package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// use counts who needs an image. The lock is shared by all of this store's
// users and keeps other stores on the same folder from collecting the image.
type use struct {
	count int
	lock  *os.File
}

// Acquire keeps an image from being collected or removed until release is
// called; release may be called more than once. Whoever adopts sandboxes after
// a restart acquires their images first. Errors: ErrNotFound, ErrClosed.
func (s *Store) Acquire(digest string) (release func(), err error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	if !digestForm.MatchString(digest) {
		return nil, fmt.Errorf("%w: bad digest %q", ErrNotFound, digest)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	u := s.inUse[digest]
	if u == nil {
		lock, err := lockUsed(s.usedPath(digest), unix.LOCK_SH)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrNotFound, digest, err)
		}
		u = &use{lock: lock}
		s.inUse[digest] = u
	}
	u.count++
	released := false
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if released {
			return
		}
		released = true
		if u.count--; u.count == 0 && s.inUse[digest] == u {
			delete(s.inUse, digest)
			_ = u.lock.Close()
		}
	}, nil
}

func (s *Store) usedPath(digest string) string { return filepath.Join(s.imageDir(digest), "used") }

// lockUsed locks the file and makes sure that it is still the one of that name,
// and not one of a folder that was removed in between.
func lockUsed(path string, how int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	mine, err := f.Stat()
	if err == nil {
		var now os.FileInfo
		if now, err = os.Stat(path); err == nil && os.SameFile(mine, now) {
			return f, nil
		}
	}
	_ = f.Close()
	return nil, errors.Join(os.ErrNotExist, err)
}

// touch notes that an image is used now.
func (s *Store) touch(digest string) {
	now := time.Now()
	if st, err := os.Stat(s.usedPath(digest)); err == nil && now.Sub(st.ModTime()) > time.Second {
		_ = os.Chtimes(s.usedPath(digest), now, now)
	}
}

// Entry describes an image on this node.
type Entry struct {
	Digest string
	Source string
	Kind   Kind
	// Names are the references and imported names that mean this image.
	Names []string
	// Size is the disk space it takes, in bytes.
	Size     int64
	Added    time.Time
	LastUsed time.Time
	// InUse says whether somebody has acquired it from this store.
	InUse bool
}

// List returns the images on this node, the most recently used first.
func (s *Store) List() ([]Entry, error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	names := map[string][]string{}
	for _, a := range s.aliases() {
		names[a.Digest] = append(names[a.Digest], a.Name)
	}
	dirs, err := os.ReadDir(s.path("images"))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var list []Entry
	for _, d := range dirs {
		digest := "sha256:" + d.Name()
		m, err := s.readManifest(digest)
		if err != nil {
			continue // being written, or being removed
		}
		e := Entry{Digest: digest, Source: m.Source, Kind: m.Kind, Names: names[digest], Added: m.Added}
		slices.Sort(e.Names)
		if st, err := os.Stat(s.usedPath(digest)); err == nil {
			e.LastUsed = st.ModTime()
		}
		files, _ := filepath.Glob(filepath.Join(s.imageDir(digest), "*.erofs"))
		for _, f := range files {
			if st, err := os.Stat(f); err == nil {
				e.Size += diskBytes(st)
			}
		}
		s.mu.Lock()
		e.InUse = s.inUse[digest] != nil
		s.mu.Unlock()
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b Entry) int {
		return b.LastUsed.Compare(a.LastUsed)
	})
	return list, nil
}

func (s *Store) aliases() []alias {
	files, _ := filepath.Glob(s.path("names", "*.json"))
	var list []alias
	for _, f := range files {
		if a, err := readAlias(f); err == nil {
			list = append(list, a)
		}
	}
	return list
}

// Remove removes an image from this node, by digest or by name. By name, the
// image itself stays as long as it has another name. Errors: ErrNotFound,
// ErrInUse; ErrInvalid for the built-in images.
func (s *Store) Remove(ref string) error {
	if err := s.prepare(); err != nil {
		return err
	}
	if ref == Base || ref == Host {
		return fmt.Errorf("%w: %q is built in and cannot be removed", ErrInvalid, ref)
	}
	digest := ref
	var drop []alias
	others := 0
	for _, a := range s.aliases() {
		switch {
		case a.Name == ref || a.Name == canonical(ref):
			digest = a.Digest
			drop = append(drop, a)
		case a.Digest == ref:
			drop = append(drop, a)
		}
	}
	if !digestForm.MatchString(digest) {
		return fmt.Errorf("%w: %q is not on this node", ErrNotFound, ref)
	}
	if digest != ref {
		for _, a := range s.aliases() {
			if a.Digest == digest && !slices.ContainsFunc(drop, func(d alias) bool { return d.Name == a.Name }) {
				others++
			}
		}
	}
	if others == 0 {
		if err := s.removeImage(digest); err != nil {
			return err
		}
	}
	for _, a := range drop {
		if err := os.Remove(s.aliasPath(a.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove name %q: %w", a.Name, err)
		}
	}
	return nil
}

// removeImage removes the files of an image that nobody uses.
func (s *Store) removeImage(digest string) error {
	if _, err := os.Stat(s.imageDir(digest)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s is not on this node", ErrNotFound, digest)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inUse[digest] != nil {
		return fmt.Errorf("%w: %s", ErrInUse, digest)
	}
	lock, err := lockUsed(s.usedPath(digest), unix.LOCK_EX)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s: %w", ErrInUse, digest, err)
	}
	if lock != nil {
		defer lock.Close()
	}
	// Out of sight first, so that a crash leaves no half image.
	tmp, err := os.MkdirTemp(s.path("tmp"), "removed-*")
	if err != nil {
		return fmt.Errorf("remove image: %w", err)
	}
	if err := os.Rename(s.imageDir(digest), filepath.Join(tmp, "image")); err != nil {
		return fmt.Errorf("remove image: %w", err)
	}
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("remove image: %w", err)
	}
	return nil
}

// removeIfIdle removes one file of an image if nobody uses the image.
func (s *Store) removeIfIdle(digest, file string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inUse[digest] != nil {
		return
	}
	if lock, err := lockUsed(s.usedPath(digest), unix.LOCK_EX); err == nil {
		_ = os.Remove(file)
		_ = lock.Close()
	}
}

// Collect removes the least recently used registry images until they take no
// more than MaxBytes, and base images of older versions. Images in use, used
// within the last minute, or imported stay. It runs after every pull; it
// returns the digests it removed.
func (s *Store) Collect() ([]string, error) {
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	var total int64
	for _, e := range list {
		if e.Kind == KindRegistry {
			total += e.Size
		}
	}
	imported := map[string]bool{}
	for _, a := range s.aliases() {
		if a.Imported {
			imported[a.Digest] = true
		}
	}
	var removed []string
	for _, e := range slices.Backward(list) {
		old := e.Kind == KindBase || e.Kind == KindHost
		if e.InUse || imported[e.Digest] || time.Since(e.LastUsed) < s.gcGrace ||
			!old && (e.Kind != KindRegistry || total <= s.opt.MaxBytes) {
			continue
		}
		if old && time.Since(e.LastUsed) < 24*time.Hour {
			continue
		}
		err := s.removeImage(e.Digest)
		if errors.Is(err, ErrInUse) || errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return removed, err
		}
		if e.Kind == KindRegistry {
			total -= e.Size
		}
		for _, n := range e.Names {
			_ = os.Remove(s.aliasPath(n))
		}
		s.log.Info("collected an image", "digest", e.Digest, "source", e.Source, "bytes", e.Size)
		removed = append(removed, e.Digest)
	}
	return removed, nil
}

// pinned is a reference with its digest.
func pinned(ref, digest string) string {
	return strings.SplitN(ref, "@", 2)[0] + "@" + digest
}
