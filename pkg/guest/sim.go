package guest

import (
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// SimServer speaks the protocol without a sandbox: it pretends to run commands
// and keeps files in memory. It exists so that tens of thousands of simulated
// sandboxes can be driven through the same client. One without a connection
// costs no goroutine, and one that has done nothing some hundred bytes.
//
// It knows the commands true, false, exit N, echo, cat (a file, or standard
// input), sleep SECONDS (or infinity), pwd, hostname, env, printenv NAME, and
// sh -c or bash -c with those joined by ";", "&&" and newlines, without quoting
// beyond one level. Any other command is not found. SIGTERM, SIGINT, SIGHUP and
// SIGKILL end a process; other signals do nothing. Watch reports nothing after
// WatchStarted.
type SimServer struct {
	secret  []byte
	started time.Time

	mu       sync.Mutex
	setup    Setup
	ready    bool
	stopping bool
	execs    map[string]*simExec
	order    []string
	files    map[string]*simFile
	running  int64
	startedN int64
	fileOps  int64
	ioBytes  int64
	session  io.Closer
	changed  chan struct{}
	frozen   chan struct{} // closed by Resume; nil: not paused
	frozenAt time.Time
}

// NewSimServer makes a simulated supervisor with an empty file system.
func NewSimServer(secret []byte) *SimServer {
	return &SimServer{secret: secret, started: time.Now()}
}

// Serve answers one connection until it ends. A new connection replaces the one
// before. The error says why the connection ended; it is never nil.
func (s *SimServer) Serve(conn net.Conn) error {
	return Serve(conn, s.secret, func(session io.Closer) {
		s.mu.Lock()
		old := s.session
		s.session = session
		s.mu.Unlock()
		if old != nil {
			_ = old.Close()
		}
	}, s.handle)
}

// Kill ends every process as if the sandbox were destroyed, and the connection.
func (s *SimServer) Kill() {
	s.mu.Lock()
	s.stopping = true
	for _, x := range s.execs {
		s.endLocked(x, 137, "SIGKILL", false)
	}
	session := s.session
	s.session = nil
	if s.frozen != nil {
		close(s.frozen)
		s.frozen = nil
	}
	s.mu.Unlock()
	if session != nil {
		_ = session.Close()
	}
}

// EndMain ends the sandbox's command with an exit code, as if by itself.
func (s *SimServer) EndMain(code int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.execs[MainExec]; x != nil {
		s.endLocked(x, code, "", false)
	}
}

func (s *SimServer) notifyLocked() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

func (s *SimServer) handle(c *Call) {
	s.awaitResume()
	switch c.Op {
	case OpPing:
		s.mu.Lock()
		i := Info{Version: Version, PID: 1, StartedAt: s.started, Configured: s.ready, MainStarted: s.execs[MainExec] != nil}
		s.mu.Unlock()
		c.Info(i)
	case OpConfigure:
		if setup, ok := c.Setup(); ok {
			s.answer(c, s.configure(setup))
		}
	case OpStart:
		if r, ok := c.Start(); ok {
			x, err := s.start(&r)
			if err != nil {
				c.Fail(err)
				return
			}
			c.Exec(x)
		}
	case OpAttach, OpLogs:
		ServeOutput(c, s.source)
	case OpStdin:
		if id, off, data, end, ok := c.Stdin(); ok {
			taken, err := s.stdin(id, off, data, end)
			if err != nil {
				c.Fail(err)
				return
			}
			c.Offset(taken)
		}
	case OpResize:
		if id, _, ok := c.Resize(); ok {
			s.answer(c, s.resize(id))
		}
	case OpSignal:
		if id, name, ok := c.Strings(); ok {
			s.answer(c, s.signal(id, name))
		}
	case OpWait:
		s.handleWait(c)
	case OpListExecs:
		s.mu.Lock()
		ids := slices.Clone(s.order)
		s.mu.Unlock()
		for _, id := range ids {
			if x := s.view(id); x != nil && c.SendExec(x) != nil {
				return
			}
		}
		c.Done()
	case OpEvents:
		s.handleEvents(c)
	case OpShutdown:
		s.mu.Lock()
		s.stopping = true
		for _, x := range s.execs {
			s.endLocked(x, 143, "SIGTERM", false)
		}
		s.mu.Unlock()
		c.Done()
	default:
		s.handleFile(c)
	}
}

func (s *SimServer) answer(c *Call, err error) {
	if err != nil {
		c.Fail(err)
		return
	}
	c.Done()
}

func (s *SimServer) configure(setup Setup) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := s.setup.Hostname == setup.Hostname && slices.Equal(s.setup.Env, setup.Env) &&
		s.setup.User == setup.User && s.setup.Workdir == setup.Workdir && slices.Equal(s.setup.DNS, setup.DNS)
	if s.execs[MainExec] != nil && !same {
		return Fail(CodeConfigured, "the sandbox's command has been started with another setup")
	}
	s.setup, s.ready = setup, true
	return nil
}

func (s *SimServer) handleEvents(c *Call) {
	gone := c.Gone()
	for {
		s.mu.Lock()
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		v := Event{Running: s.running, Started: s.startedN, FileOps: s.fileOps, IOBytes: s.ioBytes}
		if x := s.execs[MainExec]; x != nil && x.exec.End != nil {
			v.Main = x.viewLocked()
		}
		s.mu.Unlock()
		if c.SendEvent(&v) != nil {
			return
		}
		select {
		case <-changed:
		case <-gone:
			return
		}
	}
}

func (s *SimServer) handleWait(c *Call) {
	id, timeout, ok := c.Wait()
	if !ok {
		return
	}
	var limit <-chan time.Time
	for {
		src := s.source(id)
		if src == nil {
			c.Fail(Fail(CodeNotFound, "no exec ", id))
			return
		}
		st := src.OutputState()
		if st.End != nil || timeout <= 0 {
			c.Exec(s.view(id))
			return
		}
		if limit == nil {
			t := time.NewTimer(timeout)
			defer t.Stop()
			limit = t.C
		}
		select {
		case <-st.Changed:
		case <-limit:
			timeout = 0
		case <-c.Gone():
			return
		}
	}
}
