// Package supervisor is process 1 of a sandbox: it starts every process of the
// sandbox, keeps their output, and reads and writes files, on behalf of the
// node-agent (see package guest for the protocol).
//
// What it keeps, it keeps inside the sandbox, so that processes and their
// output survive the agent, and move with the sandbox's checkpoint. It is in
// every sandbox, so memory counts more than speed: a running process costs a
// goroutine for each of its outputs and up to 4 KiB of buffered output each; a
// process that has ended costs an entry of some 100 bytes, everything else is in
// files below Dir.
//
// # When a process has ended
//
// It has ended when the process that was started has ended and what it wrote
// until then has been taken, whatever its children do. Children that still hold
// its output go on: what they write is kept and can be read by offset, but is
// not waited for. A timeout, SIGKILL and a shutdown reach the whole session of
// the process; other signals its process group.
//
// Concurrency: one goroutine accepts, one reaps, one per output of a running
// process, one per connection, request and timer that is due. Supervisor.mu is
// taken before exec.mu.
package supervisor

import (
	"context"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

// maxGreeting bounds connections that have not proved the secret yet: any
// process of the sandbox can open them.
const maxGreeting = 16

// Config describes a supervisor.
type Config struct {
	// Secret is shared with the agent.
	Secret []byte
	// Dir is the folder for output, made with mode 0700.
	Dir string
	// Etc is the folder of passwd, group, hosts and so on: "/etc" in a sandbox.
	Etc string
	// Init is set when this is process 1, which reaps every process and may
	// kill all at the end.
	Init bool
}

// Supervisor starts and follows processes. Make it with New.
type Supervisor struct {
	cfg     Config
	started time.Time

	// startMu spans fork and entry into pids, so that the reaper can't take a
	// child that is not known yet.
	startMu sync.Mutex
	pids    map[int]*exec
	reap    *sync.Cond // of startMu: a child exists

	etcMu sync.Mutex
	etc   map[string]string // what configure has written

	mu       sync.Mutex
	setup    guest.Setup
	owner    *identity
	ready    bool // Configure has been called
	main     bool // main has been started
	stopping bool
	live     map[string]*exec
	starting map[string]chan struct{}
	done     map[string]record
	seq      uint32
	session  io.Closer
	newest   uint64        // which connection, as they came, session is
	changed  chan struct{} // closed when an Event would differ
	urgent   chan struct{} // closed when main has ended

	archive  archive
	limit    atomic.Int64 // of output that is kept; 0: none
	kept     atomic.Int64
	running  atomic.Int64
	startedN atomic.Int64
	fileOps  atomic.Int64
	ioBytes  atomic.Int64
}

// New makes a supervisor without touching anything.
func New(cfg Config) *Supervisor {
	s := &Supervisor{
		cfg:      cfg,
		started:  time.Now(),
		pids:     map[int]*exec{},
		live:     map[string]*exec{},
		starting: map[string]chan struct{}{},
		done:     map[string]record{},
		etc:      map[string]string{},
		changed:  make(chan struct{}),
		urgent:   make(chan struct{}),
	}
	s.reap = sync.NewCond(&s.startMu)
	s.archive.path = cfg.Dir + "/archive"
	return s
}

// Run makes the folder and serves connections from l until ctx ends. Processes
// that run then go on. It returns the listener's error, or nil with ctx.
func (s *Supervisor) Run(ctx context.Context, l net.Listener) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	if s.cfg.Init {
		// Never ends: process 1 reaps for as long as it lives.
		go s.reapAll()
	}
	var conns sync.WaitGroup
	defer conns.Wait()
	defer func() { s.replaceSession(nil, math.MaxUint64) }()
	greeting := make(chan struct{}, maxGreeting)
	for came := uint64(1); ; came++ {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		select {
		case greeting <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		conns.Go(func() {
			var once sync.Once
			leave := func() { once.Do(func() { <-greeting }) }
			defer leave()
			_ = guest.Serve(conn, s.cfg.Secret, func(session io.Closer) {
				leave()
				s.replaceSession(session, came)
			}, s.handle)
		})
	}
}

// replaceSession ends the connection before: the agent has one, and one from
// before a crash or a checkpoint would stay for ever without keepalives. came is which
// connection it is: the client of an older one may already have made the next when its
// greeting is over here, and then it is the older one that ends.
func (s *Supervisor) replaceSession(next io.Closer, came uint64) {
	s.mu.Lock()
	old := next
	if came > s.newest {
		old, s.session, s.newest = s.session, next, came
	}
	s.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
}

func (s *Supervisor) handle(c *guest.Call) {
	switch c.Op {
	case guest.OpPing:
		s.mu.Lock()
		i := guest.Info{
			Version: guest.Version, PID: int64(os.Getpid()), StartedAt: s.started,
			Configured: s.ready, MainStarted: s.main,
		}
		s.mu.Unlock()
		c.Info(i)
	case guest.OpConfigure:
		if setup, ok := c.Setup(); ok {
			answer(c, s.configure(setup))
		}
	case guest.OpStart:
		if r, ok := c.Start(); ok {
			x, err := s.start(&r)
			if err != nil {
				c.Fail(err)
				return
			}
			c.Exec(x)
		}
	case guest.OpAttach, guest.OpLogs:
		guest.ServeOutput(c, s.source)
	case guest.OpStdin:
		s.handleStdin(c)
	case guest.OpResize:
		if id, size, ok := c.Resize(); ok {
			answer(c, s.withLive(id, func(e *exec) error { return e.resize(size) }))
		}
	case guest.OpSignal:
		if id, name, ok := c.Strings(); ok {
			answer(c, s.signal(id, name))
		}
	case guest.OpWait:
		s.handleWait(c)
	case guest.OpListExecs:
		s.handleList(c)
	case guest.OpEvents:
		s.handleEvents(c)
	case guest.OpShutdown:
		if _, grace, ok := c.Wait(); ok {
			s.shutdown(grace)
			c.Done()
		}
	default:
		s.handleFile(c)
	}
}

func answer(c *guest.Call, err error) {
	if err != nil {
		c.Fail(err)
		return
	}
	c.Done()
}

// notify wakes those who follow events. The caller holds s.mu.
func (s *Supervisor) notify(urgent bool) {
	close(s.changed)
	s.changed = make(chan struct{})
	if urgent {
		close(s.urgent)
		s.urgent = make(chan struct{})
	}
}

// touchFiles counts a request for files and the bytes of it.
func (s *Supervisor) touchFiles(n int64) {
	s.fileOps.Add(1)
	s.touchInput(n)
}

func (s *Supervisor) touchInput(n int64) {
	s.ioBytes.Add(n)
	s.mu.Lock()
	s.notify(false)
	s.mu.Unlock()
}

// eventInterval is the least time between two events that are not urgent.
const eventInterval = time.Second

func (s *Supervisor) handleEvents(c *guest.Call) {
	gone := c.Gone()
	pause := time.NewTimer(0)
	defer pause.Stop()
	<-pause.C
	for {
		s.mu.Lock()
		changed, urgent := s.changed, s.urgent
		s.mu.Unlock()
		v := guest.Event{
			Running: s.running.Load(), Started: s.startedN.Load(),
			FileOps: s.fileOps.Load(), IOBytes: s.ioBytes.Load(),
		}
		if x := s.find(guest.MainExec); x != nil && x.End != nil {
			v.Main = x
		}
		if c.SendEvent(&v) != nil {
			return
		}
		pause.Reset(eventInterval)
		select {
		case <-pause.C:
			select {
			case <-changed:
			case <-gone:
				return
			}
		case <-urgent:
		case <-gone:
			return
		}
	}
}
