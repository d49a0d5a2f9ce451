package supervisor

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

// killPasses bounds how often a session is searched for processes that were
// forked during the search before.
const killPasses = 8

// withLive calls fn with a process that has not been archived.
func (s *Supervisor) withLive(id string, fn func(*exec) error) error {
	e, _, past := s.lookup(id)
	switch {
	case e != nil:
		return fn(e)
	case past:
		return guest.Fail(guest.CodeEnded, "process has ended")
	}
	return guest.Fail(guest.CodeNotFound, "no exec ", id)
}

func (s *Supervisor) signal(id, name string) error {
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	sig := unix.SignalNum(name)
	if sig == 0 {
		return guest.Fail(guest.CodeInvalid, "no signal ", name)
	}
	return s.withLive(id, func(e *exec) error { return e.kill(sig, false) })
}

// kill sends a signal to the process's group, or with SIGKILL to its session.
// It does nothing once the process has been waited for.
func (e *exec) kill(sig syscall.Signal, timedOut bool) error {
	pid := int(e.exec.PID)
	e.s.startMu.Lock()
	defer e.s.startMu.Unlock()
	if e.s.pids[pid] != e {
		return guest.Fail(guest.CodeEnded, "process has ended")
	}
	if timedOut {
		e.mu.Lock()
		e.timedOut = true
		e.mu.Unlock()
	}
	err := unix.Kill(-pid, sig)
	if sig == unix.SIGKILL {
		killSession(pid)
	}
	if err == unix.ESRCH || err == unix.EPERM {
		// The group is left, or all that is in it has become another user's.
		err = unix.Kill(pid, sig)
	}
	return err
}

func (e *exec) expire() { _ = e.kill(unix.SIGKILL, true) }

// killSession kills what belongs to a session, in whatever process group: a
// shell with a terminal gives each of its jobs a group of its own.
func killSession(session int) {
	want := strconv.Itoa(session)
	for range killPasses {
		proc, err := os.Open("/proc")
		if err != nil {
			return
		}
		names, _ := proc.Readdirnames(-1)
		_ = proc.Close()
		found := false
		for _, name := range names {
			pid, err := strconv.Atoi(name)
			if err != nil {
				continue
			}
			// pid (name) state ppid pgrp session …
			stat, err := os.ReadFile("/proc/" + name + "/stat")
			if err != nil {
				continue
			}
			line := string(stat)
			f := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
			if len(f) < 4 || f[3] != want || f[0] == "Z" || f[0] == "X" {
				continue
			}
			if unix.Kill(pid, unix.SIGKILL) == nil && pid != session {
				found = true
			}
		}
		if !found {
			return
		}
	}
}

// shutdownPoll is how often a shutdown looks whether everything has ended.
const shutdownPoll = 5 * time.Millisecond

// killWait is how long a shutdown waits for killed processes to be gone.
const killWait = 5 * time.Second

func (s *Supervisor) shutdown(grace time.Duration) {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.signalAll(unix.SIGTERM)
	if s.idleWithin(grace) {
		return
	}
	s.signalAll(unix.SIGKILL)
	s.idleWithin(killWait)
}

// signalAll signals every process of the sandbox; if this is not process 1,
// only the sessions it has started.
func (s *Supervisor) signalAll(sig syscall.Signal) {
	s.startMu.Lock()
	defer s.startMu.Unlock()
	if s.cfg.Init {
		_ = unix.Kill(-1, sig)
		return
	}
	for pid := range s.pids {
		_ = unix.Kill(-pid, sig)
		if sig == unix.SIGKILL {
			killSession(pid)
		}
	}
}

func (s *Supervisor) idleWithin(limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for {
		s.startMu.Lock()
		idle := len(s.pids) == 0
		s.startMu.Unlock()
		if idle && s.cfg.Init {
			idle = unix.Kill(-1, 0) == unix.ESRCH
		}
		if idle {
			return true
		}
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		time.Sleep(min(left, shutdownPoll))
	}
}
