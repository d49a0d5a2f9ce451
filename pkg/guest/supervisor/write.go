package supervisor

import (
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

// tempPrefix begins the names of files that are being written. Lists and
// watches leave them out.
const tempPrefix = ".sirocco-tmp-"

// write takes a file into a temporary one beside it, and renames that when the
// client has sent the end.
func (s *Supervisor) write(c *guest.Call) error {
	p, mode, parents, ok := c.PathMode()
	if !ok {
		return nil
	}
	p, err := cleanPath(p)
	if err != nil {
		return err
	}
	if p == "/" {
		return guest.Fail(guest.CodeIsDir, "/ is a folder")
	}
	if mode == 0 {
		mode = 0o644
	}
	s.touchFiles(0)
	dir, name := path.Split(p)
	if strings.HasPrefix(name, tempPrefix) {
		return guest.Fail(guest.CodeInvalid, "names that begin with ", tempPrefix, " are the platform's")
	}
	if parents {
		if err := s.makeDirs(path.Clean(dir), 0o755); err != nil {
			return err
		}
	}
	var old unix.Stat_t
	replaces := unix.Lstat(p, &old) == nil
	if replaces && old.Mode&unix.S_IFMT == unix.S_IFDIR {
		return guest.Fail(guest.CodeIsDir, p, " is a folder")
	}
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return err
	}
	temp := f.Name()
	done := false
	defer func() {
		_ = f.Close()
		if !done {
			_ = os.Remove(temp)
		}
	}()
	size, err := receive(c, f)
	s.touchInput(size)
	if err != nil {
		return err
	}
	if replaces && old.Mode&unix.S_IFMT == unix.S_IFREG {
		_ = f.Chown(int(old.Uid), int(old.Gid))
	} else {
		s.chown(temp)
	}
	// After chown, which clears the set-id bits.
	if err := unix.Fchmod(int(f.Fd()), mode&0o7777); err != nil {
		return err
	}
	if err := os.Rename(temp, p); err != nil {
		return err
	}
	done = true
	info, err := stat(p)
	if err == nil {
		c.File(info)
	}
	return err
}

func receive(c *guest.Call, w io.Writer) (size int64, err error) {
	for {
		b, err := c.Recv()
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		if err != nil {
			return size, err
		}
		n, err := w.Write(b)
		size += int64(n)
		if err != nil {
			return size, err
		}
	}
}
