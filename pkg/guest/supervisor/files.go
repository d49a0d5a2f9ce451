package supervisor

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

// readChunk is how much of a file one frame carries.
const readChunk = 32 << 10

// cleanPath checks a path of a request: absolute, without "..", and not in the
// supervisor's own folder.
func cleanPath(p string) (string, error) {
	switch {
	case p == "" || p[0] != '/':
		return "", guest.Fail(guest.CodeInvalid, "path is not absolute")
	case len(p) >= 4096:
		return "", guest.Fail(guest.CodeInvalid, "path is too long")
	case strings.IndexByte(p, 0) >= 0:
		return "", guest.Fail(guest.CodeInvalid, "path contains NUL")
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return "", guest.Fail(guest.CodeInvalid, "path contains ..")
		}
	}
	p = path.Clean(p)
	if p == guest.Dir || strings.HasPrefix(p, guest.Dir+"/") {
		return "", guest.Fail(guest.CodePermission, guest.Dir, " belongs to the platform")
	}
	return p, nil
}

// fileError turns an error of the system into one of the protocol.
func fileError(err error) error {
	var typed *guest.Error
	if err == nil || errors.As(err, &typed) {
		return err
	}
	code := guest.CodeInternal
	var no syscall.Errno
	if errors.As(err, &no) {
		switch no {
		case unix.ENOENT:
			code = guest.CodeNotFound
		case unix.EACCES, unix.EPERM, unix.EROFS:
			code = guest.CodePermission
		case unix.EEXIST:
			code = guest.CodeExists
		case unix.ENOTDIR:
			code = guest.CodeNotDir
		case unix.EISDIR:
			code = guest.CodeIsDir
		case unix.ENOTEMPTY:
			code = guest.CodeNotEmpty
		case unix.ENOSPC, unix.EDQUOT, unix.EFBIG:
			code = guest.CodeNoSpace
		case unix.EINVAL, unix.ENAMETOOLONG, unix.ELOOP, unix.EXDEV, unix.EBUSY, unix.ENXIO:
			code = guest.CodeInvalid
		case unix.EMFILE, unix.ENFILE, unix.ENOMEM:
			code = guest.CodeNoResources
		}
	}
	return guest.Fail(code, err.Error())
}

// stat describes a file, and a symlink itself.
func stat(p string) (*guest.FileInfo, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return nil, fileError(&fs.PathError{Op: "stat", Path: p, Err: err})
	}
	return fileInfo(p, &st), nil
}

func fileInfo(p string, st *unix.Stat_t) *guest.FileInfo {
	f := &guest.FileInfo{
		Path: p, Size: st.Size, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		ModifiedAt: time.Unix(st.Mtim.Unix()),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.Type = guest.FileRegular
	case unix.S_IFDIR:
		f.Type = guest.FileDir
	case unix.S_IFLNK:
		f.Type = guest.FileSymlink
		f.Target, _ = os.Readlink(p)
	default:
		f.Type = guest.FileOther
	}
	return f
}

func (s *Supervisor) handleFile(c *guest.Call) {
	var err error
	switch c.Op {
	case guest.OpRead:
		err = s.read(c)
	case guest.OpWrite:
		err = s.write(c)
	case guest.OpListFiles:
		err = s.list(c)
	case guest.OpWatch:
		err = s.watch(c)
	case guest.OpMove:
		err = s.move(c)
	case guest.OpStat, guest.OpMakeDir, guest.OpRemove:
		err = s.onePath(c)
	default:
		return
	}
	if err != nil {
		c.Fail(fileError(err))
	}
}

// onePath does the operations that take one path and answer with it.
func (s *Supervisor) onePath(c *guest.Call) error {
	p, mode, recursive, ok := c.PathMode()
	if !ok {
		return nil
	}
	p, err := cleanPath(p)
	if err != nil {
		return err
	}
	s.touchFiles(0)
	switch c.Op {
	case guest.OpMakeDir:
		if mode == 0 {
			mode = 0o755
		}
		if err := s.makeDirs(p, mode&0o7777); err != nil {
			return err
		}
	case guest.OpRemove:
		if p == "/" {
			return guest.Fail(guest.CodeInvalid, "the root can't be removed")
		}
		if err := remove(p, recursive); err != nil {
			return err
		}
		c.Done()
		return nil
	}
	f, err := stat(p)
	if err == nil {
		c.File(f)
	}
	return err
}

func remove(p string, recursive bool) error {
	if _, err := os.Lstat(p); err != nil {
		return err
	}
	if recursive {
		return os.RemoveAll(p)
	}
	return os.Remove(p)
}

// makeDirs makes the folders of p that are missing; they belong to the user of
// the setup.
func (s *Supervisor) makeDirs(p string, mode uint32) error {
	if st, err := os.Stat(p); err == nil {
		if !st.IsDir() {
			return guest.Fail(guest.CodeNotDir, p, " is not a folder")
		}
		return nil
	}
	if p == "/" {
		return nil
	}
	if err := s.makeDirs(path.Dir(p), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(p, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			if st, err := os.Stat(p); err == nil && st.IsDir() {
				return nil
			}
		}
		return err
	}
	s.chown(p)
	return unix.Chmod(p, mode)
}

// chown gives a new file to the user of the setup, as far as this process may.
func (s *Supervisor) chown(p string) {
	s.mu.Lock()
	owner := s.owner
	s.mu.Unlock()
	if owner != nil {
		_ = os.Lchown(p, int(owner.uid), int(owner.gid))
	}
}

func (s *Supervisor) move(c *guest.Call) error {
	from, to, ok := c.Strings()
	if !ok {
		return nil
	}
	from, err := cleanPath(from)
	if err != nil {
		return err
	}
	if to, err = cleanPath(to); err != nil {
		return err
	}
	s.touchFiles(0)
	// unix.Rename, since os.Rename has a rule of its own for folders.
	if err := unix.Rename(from, to); err != nil {
		return &os.LinkError{Op: "move", Old: from, New: to, Err: err}
	}
	f, err := stat(to)
	if err == nil {
		c.File(f)
	}
	return err
}

func (s *Supervisor) list(c *guest.Call) error {
	p, _, ok := c.Strings()
	if !ok {
		return nil
	}
	p, err := cleanPath(p)
	if err != nil {
		return err
	}
	s.touchFiles(0)
	dir, err := os.OpenFile(p, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return err
	}
	slices.Sort(names)
	base := strings.TrimSuffix(p, "/") + "/"
	for _, name := range names {
		full := base + name
		if full == guest.Dir || strings.HasPrefix(name, tempPrefix) {
			continue
		}
		// One that is gone by now is left out.
		if f, err := stat(full); err == nil && c.SendFile(f) != nil {
			return nil
		}
	}
	c.Done()
	return nil
}

func (s *Supervisor) read(c *guest.Call) error {
	p, off, length, ok := c.Read()
	if !ok {
		return nil
	}
	p, err := cleanPath(p)
	if err != nil {
		return err
	}
	s.touchFiles(0)
	// Without O_NONBLOCK, opening a pipe would wait for who writes to it.
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	info := fileInfo(p, &st)
	switch info.Type {
	case guest.FileRegular:
	case guest.FileDir:
		return guest.Fail(guest.CodeIsDir, p, " is a folder")
	default:
		return guest.Fail(guest.CodeInvalid, p, " is not a regular file")
	}
	if err := c.SendFile(info); err != nil {
		return nil
	}
	left := int64(1) << 62
	if length > 0 {
		left = length
	}
	var sent int64
	defer func() { s.touchInput(sent) }()
	for left > 0 {
		buf := c.Data(int(min(left, readChunk)))
		n, err := f.ReadAt(buf, off)
		if n > 0 {
			if c.SendData(n) != nil {
				return nil
			}
			off += int64(n)
			sent += int64(n)
			left -= int64(n)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	c.Done()
	return nil
}
