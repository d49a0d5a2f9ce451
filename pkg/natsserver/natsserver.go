// Package natsserver runs a NATS server inside the process, with JetStream in a
// folder of its own: what `sirocco up` uses, and a single machine needs no
// other. A fleet runs NATS by itself; see deployments/.
//
// Every acknowledged write is on disk (sync always). The server handles no
// signals; whoever starts it closes it.
package natsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/sirocco-run/sirocco/pkg/doctor"
)

// Defaults.
const (
	DefaultHost = "127.0.0.1"
	DefaultPort = 4333
	// MaxPayload bounds a message, in bytes.
	MaxPayload = 1 << 20
	// maxStore bounds what all streams may reserve together. The server would
	// otherwise take three quarters of what is free on the disk at start, and
	// refuse the streams on a small one.
	maxStore = 64 << 30
	// startTimeout bounds the recovery of the streams at start.
	startTimeout = 2 * time.Minute
)

// What stands in the way of a start.
var (
	// ErrPortTaken says that something else listens on the port.
	ErrPortTaken = errors.New("the bus's port is taken")
	// ErrDirInUse says that another server uses the folder.
	ErrDirInUse = errors.New("the folder is in use")
	// ErrDirUnusable says that the folder can't be written.
	ErrDirUnusable = errors.New("the folder can't be written")
)

// Config of a server.
type Config struct {
	// Dir holds the streams; it is made if it is missing.
	Dir string
	// Host and Port to listen on; empty and 0 mean the defaults, Port -1 any
	// free one.
	Host string
	Port int
	// Name of the server, shown to clients.
	Name string
	// Configure changes the options before the start, to add users for
	// example; nil for none.
	Configure func(*server.Options) error
	// Gate lets Hold hold up everything that passes between the server and its
	// clients. All of it takes one copy more then.
	Gate bool
	Log  *slog.Logger
}

// Server is a running server.
//
// Concurrency: one goroutine, of heal, from the start until Close.
type Server struct {
	cfg  Config
	lock *flock.Flock
	log  *logger
	// stop ends heal, which closes healed then.
	stop   context.CancelFunc
	healed chan struct{}

	mu   sync.Mutex
	srv  *server.Server
	gate *gate // nil for none
	hold Hold
	// started is closed when the start has come to its end, whichever.
	started chan struct{}
}

// Start starts a server and returns once clients can connect. Errors wrap
// ErrPortTaken, ErrDirInUse or ErrDirUnusable, and say in one sentence what to
// do. The caller calls Close.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	lock, err := prepare(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, lock: lock, log: newLogger(cfg.Log)}
	if err := s.start(ctx, cfg); err != nil {
		s.Close()
		return nil, err
	}
	healing, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop, s.healed = stop, make(chan struct{})
	go func() {
		defer close(s.healed)
		s.heal(healing)
	}()
	return s, nil
}

func (s *Server) start(ctx context.Context, cfg Config) error {
	if err := portFree(cfg.Host, cfg.Port); err != nil {
		return err
	}
	opts := cfg.options()
	var front net.Listener
	if cfg.Gate {
		var err error
		if front, err = listen(cfg.Host, cfg.Port); err != nil {
			return err
		}
		opts.DontListen = true
	}
	if err := s.startBehind(ctx, cfg, opts); err != nil || front == nil {
		if front != nil {
			_ = front.Close()
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gate = openGate(front, s.srv)
	s.gate.set(s.hold)
	return nil
}

// startBehind starts the server itself.
func (s *Server) startBehind(ctx context.Context, cfg Config, opts *server.Options) error {
	if cfg.Configure != nil {
		if err := cfg.Configure(opts); err != nil {
			return err
		}
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("make the bus server: %w", err)
	}
	srv.SetLoggerV2(s.log, false, false, false)
	started := make(chan struct{})
	s.mu.Lock()
	s.srv, s.started = srv, started
	s.mu.Unlock()
	// Start returns when the server listens, or has given up (see logger).
	go func() {
		defer close(started)
		srv.Start()
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-started:
	case reason := <-s.log.fatal:
		return fmt.Errorf("start the bus server: %s", reason)
	case <-ctx.Done():
		return fmt.Errorf("start the bus server: %w", ctx.Err())
	}
	if !srv.ReadyForConnections(10 * time.Second) {
		select {
		case reason := <-s.log.fatal:
			return fmt.Errorf("start the bus server: %s", reason)
		default:
			return errors.New("start the bus server: it does not listen after 10 s")
		}
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Host == "" {
		c.Host = DefaultHost
	}
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.Name == "" {
		c.Name = "sirocco"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) options() *server.Options {
	return &server.Options{
		ServerName: c.Name, Host: c.Host, Port: c.Port, NoSigs: true,
		MaxPayload: MaxPayload, MaxPending: 64 << 20, WriteDeadline: 10 * time.Second,
		PingInterval: 20 * time.Second, MaxPingsOut: 2,
		JetStream: true, StoreDir: c.Dir, SyncAlways: true,
		JetStreamMaxMemory: 256 << 20, JetStreamMaxStore: maxStore,
	}
}

// prepare makes the folder, sees whether it can be written, and locks it.
func prepare(dir string) (*flock.Flock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the bus's folder %s: %w (%w): name another with --data", dir, ErrDirUnusable, err)
	}
	probe := filepath.Join(dir, ".probe")
	// A page of data, because an empty file can be made on a full disk.
	err := os.WriteFile(probe, make([]byte, 4096), 0o600)
	_ = os.Remove(probe)
	if err != nil {
		return nil, fmt.Errorf("the bus's folder %s: %w (%w): free some space, or name another with --data", dir, ErrDirUnusable, err)
	}
	lock := flock.New(filepath.Join(dir, ".lock"))
	ok, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("the bus's folder %s: %w (%w)", dir, ErrDirUnusable, err)
	}
	if !ok {
		return nil, fmt.Errorf("the bus's folder %s: %w by another `sirocco up`: stop that one, or name another folder with --data", dir, ErrDirInUse)
	}
	return lock, nil
}

func portFree(host string, port int) error {
	if port < 0 {
		return nil
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err == nil {
		return l.Close()
	}
	if owner := doctor.PortOwner("/proc", port); owner != "" {
		return fmt.Errorf("port %d: %w by %s: stop that, or choose another with --nats-port", port, ErrPortTaken, owner)
	}
	return fmt.Errorf("port %d: %w (%w): choose another with --nats-port", port, ErrPortTaken, err)
}

// URL returns the address that clients use.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate != nil {
		return "nats://" + s.gate.listener.Addr().String()
	}
	return s.srv.ClientURL()
}

// InProcessConn connects without a socket, or through the gate if there is one; it
// makes a Server a nats.InProcessConnProvider.
func (s *Server) InProcessConn() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate != nil {
		// Only a socket has buffers that take what is sent while nothing passes.
		return (&net.Dialer{}).DialContext(s.gate.ctx, "tcp", s.gate.listener.Addr().String())
	}
	return s.srv.InProcessConn()
}

// Hold says from now on how what passes is held up. Without Config.Gate it does nothing.
func (s *Server) Hold(h Hold) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = h
	if s.gate != nil {
		s.gate.set(h)
	}
}

// Close ends the server, returns once everything is on disk, and frees the
// folder. A second call does nothing.
func (s *Server) Close() {
	if s.stop != nil {
		s.stop()
		<-s.healed
	}
	s.end()
	_ = s.lock.Unlock()
}

// end ends what start has started. A second call does nothing.
func (s *Server) end() {
	s.mu.Lock()
	srv, gate, started := s.srv, s.gate, s.started
	s.gate = nil
	s.mu.Unlock()
	if gate != nil {
		gate.close()
	}
	if srv == nil {
		return
	}
	// A server that is told to end while it starts would leave half of
	// itself running.
	<-started
	srv.Shutdown()
	srv.WaitForShutdown()
}
