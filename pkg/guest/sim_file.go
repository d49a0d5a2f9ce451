package guest

import (
	"errors"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// simFile is a file or folder in memory.
type simFile struct {
	info FileInfo
	data []byte
}

// simFileMax bounds one file of a simulated sandbox.
const simFileMax = 64 << 20

func simPath(p string) (string, error) {
	if p == "" || p[0] != '/' || slices.Contains(strings.Split(p, "/"), "..") {
		return "", Fail(CodeInvalid, "path is not absolute, or contains ..")
	}
	p = path.Clean(p)
	if p == Dir || strings.HasPrefix(p, Dir+"/") {
		return "", Fail(CodePermission, Dir, " belongs to the platform")
	}
	return p, nil
}

func (s *SimServer) handleFile(c *Call) {
	var err error
	switch c.Op {
	case OpWrite:
		err = s.write(c)
	case OpRead:
		err = s.read(c)
	case OpStat, OpMakeDir, OpRemove:
		err = s.onePath(c)
	case OpListFiles:
		err = s.list(c)
	case OpMove:
		err = s.move(c)
	case OpWatch:
		err = s.watch(c)
	default:
		return
	}
	if err != nil {
		c.Fail(err)
	}
}

func (s *SimServer) touchLocked(n int) {
	s.fileOps++
	s.ioBytes += int64(n)
	s.notifyLocked()
}

func (s *SimServer) fileLocked(p string) (*simFile, error) {
	if p == "/" {
		return &simFile{info: FileInfo{Path: "/", Type: FileDir, Mode: 0o755, ModifiedAt: s.started}}, nil
	}
	if f := s.files[p]; f != nil {
		return f, nil
	}
	return nil, Fail(CodeNotFound, "no file ", p)
}

func (s *SimServer) makeDirsLocked(p string, mode uint32) error {
	if f, err := s.fileLocked(p); err == nil {
		if f.info.Type != FileDir {
			return Fail(CodeNotDir, p, " is not a folder")
		}
		return nil
	}
	if err := s.makeDirsLocked(path.Dir(p), 0o755); err != nil {
		return err
	}
	s.putLocked(&simFile{info: FileInfo{Path: p, Type: FileDir, Mode: mode, ModifiedAt: time.Now()}})
	return nil
}

func (s *SimServer) putLocked(f *simFile) {
	if s.files == nil {
		s.files = map[string]*simFile{}
	}
	s.files[f.info.Path] = f
}

func (s *SimServer) write(c *Call) error {
	p, mode, parents, ok := c.PathMode()
	if !ok {
		return nil
	}
	p, err := simPath(p)
	if err != nil {
		return err
	}
	var data []byte
	for {
		b, err := c.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if len(data)+len(b) > simFileMax {
			return Fail(CodeNoSpace, "simulated files are at most 64 MiB")
		}
		data = append(data, b...)
	}
	if mode == 0 {
		mode = 0o644
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.touchLocked(len(data))
	if old, err := s.fileLocked(p); err == nil && old.info.Type == FileDir {
		return Fail(CodeIsDir, p, " is a folder")
	}
	if parents {
		if err := s.makeDirsLocked(path.Dir(p), 0o755); err != nil {
			return err
		}
	}
	if dir, err := s.fileLocked(path.Dir(p)); err != nil {
		return err
	} else if dir.info.Type != FileDir {
		return Fail(CodeNotDir, path.Dir(p), " is not a folder")
	}
	f := &simFile{data: data, info: FileInfo{
		Path: p, Type: FileRegular, Size: int64(len(data)), Mode: mode, ModifiedAt: time.Now(),
	}}
	s.putLocked(f)
	c.File(&f.info)
	return nil
}

func (s *SimServer) read(c *Call) error {
	p, off, length, ok := c.Read()
	if !ok {
		return nil
	}
	p, err := simPath(p)
	if err != nil {
		return err
	}
	s.mu.Lock()
	f, err := s.fileLocked(p)
	s.touchLocked(0)
	s.mu.Unlock()
	switch {
	case err != nil:
		return err
	case f.info.Type == FileDir:
		return Fail(CodeIsDir, p, " is a folder")
	}
	if c.SendFile(&f.info) != nil {
		return nil
	}
	// A file's bytes never change: a write makes another.
	data := f.data[min(off, int64(len(f.data))):]
	if length > 0 {
		data = data[:min(length, int64(len(data)))]
	}
	for len(data) > 0 {
		n := copy(c.Data(min(len(data), chunk)), data)
		if c.SendData(n) != nil {
			return nil
		}
		data = data[n:]
	}
	c.Done()
	return nil
}

func (s *SimServer) onePath(c *Call) error {
	p, mode, recursive, ok := c.PathMode()
	if !ok {
		return nil
	}
	p, err := simPath(p)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.touchLocked(0)
	if c.Op == OpMakeDir {
		if mode == 0 {
			mode = 0o755
		}
		if err := s.makeDirsLocked(p, mode); err != nil {
			return err
		}
	}
	f, err := s.fileLocked(p)
	if err != nil {
		return err
	}
	if c.Op != OpRemove {
		c.File(&f.info)
		return nil
	}
	if p == "/" {
		return Fail(CodeInvalid, "the root can't be removed")
	}
	below := s.belowLocked(p)
	if len(below) > 0 && !recursive {
		return Fail(CodeNotEmpty, p, " is not empty")
	}
	for _, f := range below {
		delete(s.files, f.info.Path)
	}
	delete(s.files, p)
	c.Done()
	return nil
}

// belowLocked returns all files below a folder.
func (s *SimServer) belowLocked(p string) []*simFile {
	prefix := strings.TrimSuffix(p, "/") + "/"
	var list []*simFile
	for name, f := range s.files {
		if strings.HasPrefix(name, prefix) {
			list = append(list, f)
		}
	}
	return list
}

func (s *SimServer) list(c *Call) error {
	p, _, ok := c.Strings()
	if !ok {
		return nil
	}
	p, err := simPath(p)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.touchLocked(0)
	f, err := s.fileLocked(p)
	var infos []FileInfo
	for _, f := range s.belowLocked(p) {
		if path.Dir(f.info.Path) == p {
			infos = append(infos, f.info)
		}
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if f.info.Type != FileDir {
		return Fail(CodeNotDir, p, " is not a folder")
	}
	slices.SortFunc(infos, func(a, b FileInfo) int { return strings.Compare(a.Path, b.Path) })
	for i := range infos {
		if c.SendFile(&infos[i]) != nil {
			return nil
		}
	}
	c.Done()
	return nil
}

func (s *SimServer) move(c *Call) error {
	from, to, ok := c.Strings()
	if !ok {
		return nil
	}
	from, err := simPath(from)
	if err != nil {
		return err
	}
	if to, err = simPath(to); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.touchLocked(0)
	f, err := s.fileLocked(from)
	if err != nil {
		return err
	}
	if dir, err := s.fileLocked(path.Dir(to)); err != nil {
		return err
	} else if dir.info.Type != FileDir {
		return Fail(CodeNotDir, path.Dir(to), " is not a folder")
	}
	if from == "/" || to == "/" || strings.HasPrefix(to, from+"/") {
		return Fail(CodeInvalid, "a folder can't be moved into itself")
	}
	if old := s.files[to]; old != nil && (old.info.Type == FileDir) != (f.info.Type == FileDir) {
		if old.info.Type == FileDir {
			return Fail(CodeIsDir, to, " is a folder")
		}
		return Fail(CodeNotDir, to, " is not a folder")
	} else if old != nil && len(s.belowLocked(to)) > 0 {
		return Fail(CodeNotEmpty, to, " is not empty")
	}
	if from == to {
		c.File(&f.info)
		return nil
	}
	moved := append(s.belowLocked(from), f)
	for _, m := range moved {
		// A copy: a list that is being sent holds the old one.
		next := *m
		delete(s.files, m.info.Path)
		next.info.Path = to + strings.TrimPrefix(m.info.Path, from)
		s.putLocked(&next)
	}
	c.File(&s.files[to].info)
	return nil
}

func (s *SimServer) watch(c *Call) error {
	p, _, _, ok := c.PathMode()
	if !ok {
		return nil
	}
	p, err := simPath(p)
	if err != nil {
		return err
	}
	s.mu.Lock()
	_, err = s.fileLocked(p)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if c.SendFileEvent(FileEvent{Path: p, Change: WatchStarted}) != nil {
		return nil
	}
	<-c.Gone()
	return nil
}
