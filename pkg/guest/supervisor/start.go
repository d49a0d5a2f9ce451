package supervisor

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

// maxExecs bounds how many processes are remembered.
const maxExecs = 200_000

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func validID(id string) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// start starts a process, or returns the one that has the id. Of several calls
// with one id at once, one starts it and the others wait for that.
func (s *Supervisor) start(r *guest.StartRequest) (*guest.Exec, error) {
	if !validID(r.ID) {
		return nil, guest.Fail(guest.CodeInvalid, "exec id must be 1 to 64 of [A-Za-z0-9_-]")
	}
	for {
		s.mu.Lock()
		_, past := s.done[r.ID]
		if past || s.live[r.ID] != nil {
			s.mu.Unlock()
			if x := s.find(r.ID); x != nil {
				return x, nil
			}
			return nil, guest.Fail(guest.CodeInternal, "kept record is gone")
		}
		if other := s.starting[r.ID]; other != nil {
			s.mu.Unlock()
			<-other
			continue
		}
		if s.stopping {
			s.mu.Unlock()
			return nil, guest.Fail(guest.CodeStopping, "the sandbox is shutting down")
		}
		if len(s.live)+len(s.done) >= maxExecs {
			s.mu.Unlock()
			return nil, guest.Fail(guest.CodeLimit, "too many execs in one sandbox")
		}
		mine := make(chan struct{})
		s.starting[r.ID] = mine
		setup := s.setup
		s.mu.Unlock()

		x, err := s.spawn(r, &setup)

		s.mu.Lock()
		delete(s.starting, r.ID)
		s.mu.Unlock()
		close(mine)
		return x, err
	}
}

// launch is a process about to be started.
type launch struct {
	path    string
	argv    []string
	env     []string
	workdir string
	who     *identity
}

// prepare resolves what a request means in this sandbox.
func (s *Supervisor) prepare(r *guest.StartRequest, setup *guest.Setup) (*launch, error) {
	if len(r.Command) == 0 || r.Command[0] == "" {
		return nil, guest.Fail(guest.CodeInvalid, "command is empty")
	}
	for _, list := range [][]string{r.Command, r.Env, {r.Workdir, r.User}} {
		for _, v := range list {
			if strings.IndexByte(v, 0) >= 0 {
				return nil, guest.Fail(guest.CodeInvalid, "a string contains NUL")
			}
		}
	}
	user := r.User
	if user == "" {
		user = setup.User
	}
	who, err := s.resolve(user)
	if err != nil {
		return nil, err
	}
	l := &launch{argv: r.Command, who: who, workdir: r.Workdir}
	if l.workdir == "" {
		l.workdir = who.workdir(setup.Workdir)
	}
	if l.workdir[0] != '/' {
		return nil, guest.Fail(guest.CodeInvalid, "workdir is not absolute: ", l.workdir)
	}
	if !isDir(l.workdir) {
		return nil, guest.Fail(guest.CodeWorkdirMissing, "no folder ", l.workdir, " to work in")
	}
	l.env = environment(r, setup, who)
	l.path, err = lookPath(r.Command[0], lookup(l.env, "PATH"), l.workdir)
	return l, err
}

// environment joins defaults, the sandbox's and the request's own; the last of a
// name counts. Nothing is inherited from the supervisor.
func environment(r *guest.StartRequest, setup *guest.Setup, who *identity) []string {
	base := []string{"PATH=" + defaultPath, "HOME=" + who.home}
	if r.TTY != nil {
		base = append(base, "TERM=xterm-256color")
	}
	at := make(map[string]int, len(base)+len(setup.Env)+len(r.Env))
	var env []string
	for _, list := range [][]string{base, setup.Env, r.Env} {
		for _, kv := range list {
			name, _, ok := strings.Cut(kv, "=")
			if !ok || name == "" {
				continue
			}
			if i, ok := at[name]; ok {
				env[i] = kv
				continue
			}
			at[name] = len(env)
			env = append(env, kv)
		}
	}
	return env
}

func lookup(env []string, name string) string {
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			return v
		}
	}
	return ""
}

// lookPath finds a command as a shell does. A file that is there but may not be
// executed is reported as such when nothing better is found.
func lookPath(name, path, workdir string) (string, error) {
	if strings.Contains(name, "/") {
		full := name
		if name[0] != '/' {
			full = workdir + "/" + name
		}
		switch err := executable(full); {
		case err == nil:
			return full, nil
		case errors.Is(err, os.ErrPermission):
			return "", guest.Fail(guest.CodeNotExecutable, name, " is not executable")
		}
		return "", guest.Fail(guest.CodeCommandNotFound, name, " not found")
	}
	refused := false
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" || dir[0] != '/' {
			dir = workdir + "/" + dir
		}
		full := dir + "/" + name
		switch err := executable(full); {
		case err == nil:
			return full, nil
		case errors.Is(err, os.ErrPermission):
			refused = true
		}
	}
	if refused {
		return "", guest.Fail(guest.CodeNotExecutable, name, " is not executable")
	}
	return "", guest.Fail(guest.CodeCommandNotFound, name, " not found in PATH")
}

func executable(path string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return os.ErrNotExist
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG || st.Mode&0o111 == 0 {
		return os.ErrPermission
	}
	return nil
}

// spawn starts the process and everything that follows it.
func (s *Supervisor) spawn(r *guest.StartRequest, setup *guest.Setup) (*guest.Exec, error) {
	l, err := s.prepare(r, setup)
	if err != nil {
		return nil, err
	}
	e := &exec{s: s}
	e.exec = guest.Exec{ID: r.ID, Command: r.Command, TTY: r.TTY != nil}
	var files *stdio
	if r.TTY != nil {
		files, err = openTerminal(*r.TTY, l.who.uid)
	} else {
		files, err = openPipes(r.Stdin)
	}
	if err != nil {
		return nil, err
	}
	defer files.closeChild()
	attr := &syscall.ProcAttr{
		Dir: l.workdir, Env: l.env, Files: files.child[:],
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: r.TTY != nil, Ctty: 0, Credential: l.who.credential()},
	}

	s.startMu.Lock()
	pid, err := syscall.ForkExec(l.path, l.argv, attr)
	if err != nil {
		s.startMu.Unlock()
		files.closeParent()
		return nil, startError(err, l)
	}
	e.exec.PID = int32(pid)
	e.exec.StartedAt = time.Now()
	e.input = files.input
	for i, f := range files.out {
		if f != nil {
			e.out[i].pipe = f
			e.open++
		}
	}
	main := r.ID == guest.MainExec
	s.mu.Lock()
	s.seq++
	e.seq = s.seq
	s.live[r.ID] = e
	s.main = s.main || main
	if !main {
		s.running.Add(1)
		s.startedN.Add(1)
	}
	s.notify(false)
	s.mu.Unlock()
	if r.Timeout > 0 {
		e.timer = time.AfterFunc(r.Timeout, e.expire)
	}
	x := *e.view()
	s.pids[pid] = e
	s.reap.Signal()
	s.startMu.Unlock()

	// Each ends with the last process that holds the output.
	for i, f := range files.out {
		if f != nil {
			go e.pump(guest.Stream(i), f)
		}
	}
	if !s.cfg.Init {
		go s.reapOne(pid)
	}
	return &x, nil
}

func startError(err error, l *launch) error {
	name := l.argv[0]
	var errno unix.Errno
	_ = errors.As(err, &errno)
	switch errno {
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		// The file was there: the interpreter in its first line is not.
		return guest.Fail(guest.CodeCommandNotFound, name, " or its interpreter not found")
	case unix.EACCES, unix.EPERM:
		if !l.who.enters(l.workdir) {
			return guest.Fail(guest.CodeWorkdirDenied, "user may not enter ", l.workdir)
		}
		return guest.Fail(guest.CodeNotExecutable, "user may not execute ", name)
	case unix.ENOEXEC:
		return guest.Fail(guest.CodeNotExecutable, name, " is not a program for this machine")
	case unix.E2BIG:
		return guest.Fail(guest.CodeInvalid, "command and environment are too long")
	case unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE:
		return guest.Fail(guest.CodeNoResources, "no more processes: ", err.Error())
	}
	return guest.Fail(guest.CodeInternal, "start ", name, ": ", err.Error())
}
