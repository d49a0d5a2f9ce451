package supervisor

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

const (
	// maxWatches bounds the folders of one watch.
	maxWatches = 16384
	watchMask  = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MODIFY |
		unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
)

// unwatched are folders that change all the time without anybody writing files.
var unwatched = [...]string{"/proc", "/sys", "/dev", guest.Dir}

// watcher follows one path for one client.
type watcher struct {
	call      *guest.Call
	fd        int
	root      string
	recursive bool
	paths     map[int]string
	last      guest.FileEvent
	// announced holds what a search has reported and may be in the queue as well.
	announced map[string]struct{}
}

func (s *Supervisor) watch(c *guest.Call) error {
	p, _, recursive, ok := c.PathMode()
	if !ok {
		return nil
	}
	p, err := cleanPath(p)
	if err != nil {
		return err
	}
	s.touchFiles(0)
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	w := &watcher{call: c, fd: fd, root: p, recursive: recursive, paths: map[int]string{}, announced: map[string]struct{}{}}
	if err := w.add(p, false); err != nil {
		return err
	}
	if err := c.SendFileEvent(guest.FileEvent{Path: p, Change: guest.WatchStarted}); err != nil {
		return nil
	}
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-c.Gone():
			_ = f.Close()
		case <-stop:
		}
	}()
	defer func() { close(stop); <-stopped }()

	buf := make([]byte, 4<<10)
	for {
		w.settle()
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		ended, err := w.report(buf[:n])
		if err != nil {
			return err
		}
		if ended {
			c.Done()
			return nil
		}
	}
}

// add watches a path and, if the watch is recursive, the folders below. With
// announce, what is found there is reported as created: it may have come before
// the watch did.
func (w *watcher) add(p string, announce bool) error {
	if len(w.paths) >= maxWatches {
		return guest.Fail(guest.CodeLimit, "too many folders to watch below ", w.root)
	}
	mask := uint32(watchMask)
	if p != w.root {
		mask |= unix.IN_DONT_FOLLOW | unix.IN_ONLYDIR
	}
	wd, err := unix.InotifyAddWatch(w.fd, p, mask)
	if errors.Is(err, unix.ENOSPC) {
		return guest.Fail(guest.CodeLimit, "too many watches in this sandbox")
	}
	if err != nil {
		return &fs.PathError{Op: "watch", Path: p, Err: err}
	}
	w.paths[wd] = p
	if !w.recursive {
		return nil
	}
	entries, err := os.ReadDir(p)
	if err != nil {
		// A file, or a folder that has gone again.
		return nil
	}
	for _, entry := range entries {
		full := filepath.Join(p, entry.Name())
		if announce {
			w.announced[full] = struct{}{}
			if err := w.send(full, guest.FileCreated); err != nil {
				return err
			}
		}
		if entry.IsDir() {
			if err := w.descend(full, announce); err != nil {
				return err
			}
		}
	}
	return nil
}

// descend adds a folder below the root; one that has gone is no error.
func (w *watcher) descend(p string, announce bool) error {
	for _, skip := range unwatched {
		if p == skip {
			return nil
		}
	}
	err := w.add(p, announce)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// send reports a change. A change that repeats the one before says nothing new.
func (w *watcher) send(p string, change guest.Change) error {
	v := guest.FileEvent{Path: p, Change: change}
	if v == w.last || strings.HasPrefix(filepath.Base(p), tempPrefix) || p == guest.Dir {
		return nil
	}
	w.last = v
	return w.call.SendFileEvent(v)
}

// report handles what one read has given. ended is set when the root is gone.
func (w *watcher) report(b []byte) (ended bool, err error) {
	// Repeats are left out within one read only, so that a later write is seen.
	w.last = guest.FileEvent{}
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int(int32(binary.NativeEndian.Uint32(b)))
		mask := binary.NativeEndian.Uint32(b[4:])
		size := int(binary.NativeEndian.Uint32(b[12:]))
		b = b[unix.SizeofInotifyEvent:]
		name, _, _ := strings.Cut(string(b[:min(size, len(b))]), "\x00")
		b = b[min(size, len(b)):]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			return false, guest.Fail(guest.CodeOverflow, "changes came too fast; some are lost")
		}
		dir, ok := w.paths[wd]
		if !ok {
			continue
		}
		if mask&unix.IN_IGNORED != 0 {
			delete(w.paths, wd)
			continue
		}
		if mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0 {
			if dir == w.root {
				return true, w.send(dir, guest.FileRemoved)
			}
			// Its folder reports it.
			if mask&unix.IN_MOVE_SELF != 0 {
				w.moved(dir)
			}
			continue
		}
		full := dir
		if name != "" {
			full = filepath.Join(dir, name)
		}
		if err := w.change(full, mask); err != nil {
			return false, err
		}
	}
	return false, nil
}

// moved stops watching a folder that is no longer where it was, and what is
// below: it would report under the old names. Moved to within the root, it has
// been added again under its new name, which exists.
func (w *watcher) moved(dir string) {
	if _, err := os.Lstat(dir); err == nil {
		return
	}
	for wd, p := range w.paths {
		if p == dir || strings.HasPrefix(p, dir+"/") {
			_, _ = unix.InotifyRmWatch(w.fd, uint32(wd))
			delete(w.paths, wd)
		}
	}
}

// settle forgets what was announced once the queue is empty: what a search has
// found after its watch was made had been queued before it was found.
func (w *watcher) settle() {
	if len(w.announced) == 0 {
		return
	}
	if n, err := unix.IoctlGetInt(w.fd, unix.TIOCINQ); err == nil && n == 0 {
		clear(w.announced)
	}
}

func (w *watcher) change(full string, mask uint32) error {
	isDir := mask&unix.IN_ISDIR != 0
	switch {
	case mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
		if _, known := w.announced[full]; known {
			delete(w.announced, full)
			return nil
		}
		if err := w.send(full, guest.FileCreated); err != nil {
			return err
		}
		if isDir && w.recursive {
			return w.descend(full, true)
		}
	case mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0:
		delete(w.announced, full)
		return w.send(full, guest.FileRemoved)
	case mask&unix.IN_MODIFY != 0 && !isDir:
		return w.send(full, guest.FileModified)
	}
	return nil
}
