// Package starter starts gVisor sandboxes from a small process of its own, which
// is runsc itself under another command (package server).
//
// Starting one copies the page tables of whoever starts it, because a sandbox gets a
// user namespace and Go then forks without sharing memory; it marks each open file of
// the process, and moves a thread to another network namespace. In an agent with
// hundreds of megabytes and thousands of files that took 10 to 15 ms of a processor for
// each sandbox; here it takes one or two, and whatever goes wrong on the way, with a
// thread that does not come back for example, is not the agent's.
//
// It also has a mount namespace of its own, without the network namespaces that are
// mounted on the machine. Each sandbox starts with a copy of all mounts that its starter
// sees, and keeps those copies to its end: with a mount for each, a thousand sandboxes
// would have a million, and to take away one of them would have to wait for all.
// NetNS says how such a namespace is named.
//
// The process ends with the agent: its end of the socket closes. It also holds the
// agent's lock on its state folder, so that no next agent looks at what is there while
// the one before may still be starting something. Sandboxes outlive both.
package starter

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// Command is runsc's only argument when it is to be a starter.
	Command = "sirocco-starter"
	// Service is the name that the starter's methods are called by, of net/rpc.
	Service = "Starter"
	// SocketFD is the starter's end of the socket. The descriptor after it is the
	// agent's lock, which is only held.
	SocketFD = 3
	// ContainerID is the name of the sandbox's only container inside gVisor. Each
	// sandbox has a gVisor root folder of its own, so it need not be unique.
	ContainerID = "sb"
)

// Request asks for a sandbox.
type Request struct {
	// Dir is its bundle folder, with config.json in it, and gVisor's own folder.
	Dir string
	// Disk limits what may be written to the root file system, in bytes.
	Disk int64
	// Debug sends gVisor's log to Dir/log.
	Debug bool
	// Prepare leaves out the start of process 1: Restore is to follow.
	Prepare bool
}

// Restoring asks for the content of a sandbox that Start has prepared.
type Restoring struct {
	// Request is the one that it was prepared with.
	Request Request
	// Image is the folder of the checkpoint.
	Image string
	// Background: what the sandbox has in memory may still be read when Restore returns.
	// gVisor keeps its files open for that; what a process touches comes first.
	Background bool
}

// Started is a sandbox whose process 1 runs, or that is prepared.
type Started struct {
	// PID is of gVisor's process. Gofer is 0 for an image.
	PID, Gofer int
	// Control is the path of gVisor's control socket.
	Control string
}

// Ended says how a process ended.
type Ended struct {
	// Status is valid if Known: the process was this starter's child.
	Status unix.WaitStatus
	Known  bool
}

// Starter is the agent's side. Its methods may be called concurrently.
type Starter struct {
	runsc string
	lock  *os.File
	log   *slog.Logger

	mu     sync.Mutex
	client *rpc.Client // nil before the first start
	closed bool
	exited sync.WaitGroup
}

// New returns a Starter that runs the runsc at a path. The process is begun by the
// first Start, and anew after it was killed. lock stays the caller's.
func New(runsc string, lock *os.File, log *slog.Logger) *Starter {
	return &Starter{runsc: runsc, lock: lock, log: log}
}

// ErrClosed: Close was called.
var ErrClosed = errors.New("the starter of sandboxes is closed")

// NetNS is the path by which a starter finds a network namespace that is mounted at
// path for this program.
func NetNS(path string) string {
	return filepath.Join("/proc", strconv.Itoa(os.Getpid()), "root", path)
}

// Start makes a sandbox of a bundle and starts its process 1. On an error its processes
// may be left. Errors: gVisor's, as text; rpc.ErrShutdown or an error of the socket if
// the starter ended meanwhile.
func (s *Starter) Start(r Request) (Started, error) {
	var started Started
	client, err := s.connect()
	if err != nil {
		return started, err
	}
	err = client.Call(Service+".Start", r, &started)
	return started, err
}

// Restore gives a prepared sandbox the content of a checkpoint, and leaves it paused.
// Errors: as those of Start.
func (s *Starter) Restore(r Restoring) error {
	client, err := s.connect()
	if err != nil {
		return err
	}
	return client.Call(Service+".Restore", r, &struct{}{})
}

// Reap collects a process that has ended, and says how. Of one that is not the
// starter's child, because the starter was begun after it, nothing is known.
func (s *Starter) Reap(pid int) Ended {
	var ended Ended
	s.mu.Lock()
	client := s.client
	s.mu.Unlock()
	if client == nil || client.Call(Service+".Reap", pid, &ended) != nil {
		return Ended{}
	}
	return ended
}

// Close ends the process and waits for its end. Sandboxes go on.
func (s *Starter) Close() error {
	s.mu.Lock()
	s.closed = true
	client := s.client
	s.mu.Unlock()
	var err error
	if client != nil {
		if err = client.Close(); errors.Is(err, rpc.ErrShutdown) {
			err = nil
		}
	}
	s.exited.Wait()
	return err
}

// connect returns the connection to a starter that runs.
func (s *Starter) connect() (*rpc.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if s.client == nil {
		if err := s.beginLocked(); err != nil {
			return nil, fmt.Errorf("begin the starter of sandboxes: %w", err)
		}
	}
	return s.client, nil
}

func (s *Starter) beginLocked() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "starter"), os.NewFile(uintptr(fds[1]), "starter")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return err
	}
	// Its standard files are a pipe of its own: gVisor gives them to the user of each
	// sandbox, on their way to package launch, which replaces them.
	output, input, err := os.Pipe()
	if err != nil {
		conn.Close()
		return err
	}
	cmd := &exec.Cmd{
		Path: s.runsc, Args: []string{Command, Command}, Env: []string{}, Dir: "/",
		Stdin: input, Stdout: input, Stderr: input, ExtraFiles: []*os.File{theirs, s.lock},
		// A signal for everything in a terminal is not for it: it ends with its agent.
		SysProcAttr: &unix.SysProcAttr{Setsid: true, Unshareflags: unix.CLONE_NEWNS},
	}
	err = cmd.Start()
	input.Close()
	if err != nil {
		output.Close()
		conn.Close()
		return err
	}
	client := rpc.NewClient(conn)
	s.client = client
	s.exited.Go(func() {
		last := tail(output)
		output.Close()
		err := cmd.Wait()
		client.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.client == client {
			s.client = nil
		}
		if !s.closed {
			s.log.Error("the starter of sandboxes ended; the next start begins another", "err", err, "output", last)
		}
	})
	return nil
}

// tailLines is how much of a starter's output is kept, to be told should it end.
const tailLines = 40

// tail reads to the end and returns the last lines.
func tail(output *os.File) string {
	var lines []string
	for scan := bufio.NewScanner(output); scan.Scan(); {
		if lines = append(lines, scan.Text()); len(lines) > tailLines {
			lines = lines[1:]
		}
	}
	return strings.Join(lines, "\n")
}
