package supervisor

import (
	"bufio"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

// accountFileMax is how much of /etc/passwd and /etc/group is read.
const accountFileMax = 4 << 20

// identity is who a process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// credential returns nil where nothing has to change, so that a supervisor
// without the right to change users still starts processes as itself.
func (i *identity) credential() *syscall.Credential {
	if os.Getuid() == int(i.uid) && os.Getgid() == int(i.gid) && len(i.groups) == 0 {
		return nil
	}
	return &syscall.Credential{Uid: i.uid, Gid: i.gid, Groups: i.groups}
}

// workdir is where a process of this user works that asks for no folder. base
// is the image's, which may be closed to all but root.
func (i *identity) workdir(base string) string {
	if base == "" {
		return "/"
	}
	if isDir(base) && !i.enters(base) {
		if isDir(i.home) && i.enters(i.home) {
			return i.home
		}
		return "/"
	}
	return base
}

// enters says whether the modes of a folder, and of those above it, let the
// user in. The kernel has the last word: it knows of links and of lists too.
func (i *identity) enters(dir string) bool {
	if i.uid == 0 {
		return true
	}
	for end := 1; ; end++ {
		if end < len(dir) && dir[end] != '/' {
			continue
		}
		if !i.passes(dir[:end]) {
			return false
		}
		if end >= len(dir) {
			return true
		}
	}
}

func (i *identity) passes(dir string) bool {
	var st syscall.Stat_t
	if syscall.Stat(dir, &st) != nil {
		return false
	}
	bit := uint32(0o001)
	switch {
	case st.Uid == i.uid:
		bit = 0o100
	case st.Gid == i.gid || slices.Contains(i.groups, st.Gid):
		bit = 0o010
	}
	return st.Mode&bit != 0
}

func isDir(path string) bool {
	var st syscall.Stat_t
	return syscall.Stat(path, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFDIR
}

// resolve finds a user: "", "name", "uid", and either with ":name" or ":gid" of
// a group. A number need not be in /etc/passwd; its group is 0 then.
func (s *Supervisor) resolve(user string) (*identity, error) {
	if user == "" {
		user = "0"
	}
	name, group, hasGroup := strings.Cut(user, ":")
	who := &identity{home: "/"}
	number, isNumber := parseID(name)
	found := false
	login := name
	s.accounts("/passwd", 7, func(f []string) bool {
		uid, ok := parseID(f[2])
		if !ok || (isNumber && uid != number) || (!isNumber && f[0] != name) {
			return true
		}
		gid, ok := parseID(f[3])
		if !ok {
			return true
		}
		found = true
		login = f[0]
		who.uid, who.gid = uid, gid
		if strings.HasPrefix(f[5], "/") {
			who.home = f[5]
		}
		return false
	})
	switch {
	case !found && !isNumber:
		return nil, guest.Fail(guest.CodeUnknownUser, "no user ", name, " in this image")
	case !found:
		who.uid = number
		if number == 0 {
			who.home = "/root"
		}
	}
	if hasGroup {
		gid, ok := parseID(group)
		if !ok {
			s.accounts("/group", 4, func(f []string) bool {
				if f[0] == group {
					gid, ok = parseID(f[2])
				}
				return !ok
			})
		}
		if !ok {
			return nil, guest.Fail(guest.CodeUnknownUser, "no group ", group, " in this image")
		}
		who.gid = gid
		return who, nil
	}
	if found {
		s.accounts("/group", 4, func(f []string) bool {
			gid, ok := parseID(f[2])
			if ok && gid != who.gid && contains(f[3], login) && len(who.groups) < 64 {
				who.groups = append(who.groups, gid)
			}
			return true
		})
	}
	return who, nil
}

func contains(list, name string) bool {
	for v := range strings.SplitSeq(list, ",") {
		if v == name {
			return true
		}
	}
	return false
}

func parseID(s string) (uint32, bool) {
	// The last value means "unchanged" to the system calls.
	v, err := strconv.ParseUint(s, 10, 32)
	return uint32(v), err == nil && v < 1<<32-1
}

// accounts calls fn with the fields of each line that has as many as wanted,
// until fn returns false. A file that is missing, or not a regular file, is
// empty.
func (s *Supervisor) accounts(path string, fields int, fn func([]string) bool) {
	f, err := os.OpenFile(s.cfg.Etc+path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return
	}
	lines := bufio.NewScanner(io.LimitReader(f, accountFileMax))
	for lines.Scan() {
		if v := strings.Split(lines.Text(), ":"); len(v) >= fields && !fn(v) {
			return
		}
	}
}
