package guest

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"time"
)

// simState is a SimServer as Save writes it. Times that are still to come are kept as
// what is left of them.
type simState struct {
	Started  time.Time
	Setup    Setup
	Ready    bool
	Stopping bool
	Execs    []simExecState
	Files    []simFileState
	Running  int64
	StartedN int64
	FileOps  int64
	IOBytes  int64
}

type simExecState struct {
	Exec           Exec
	Env            []string
	Workdir        string
	Stdout, Stderr []byte
	Runs           []Run
	Steps          [][]string
	Wakes, Dies    time.Duration // 0: never
	Stdin, Reading bool
	Pending        []byte
	EOF            bool
	Taken          int64
}

type simFileState struct {
	Info FileInfo
	Data []byte
}

// Pause stops what runs: no process goes on, and no request is answered. It may be
// called again.
func (s *SimServer) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen != nil {
		return
	}
	s.frozen, s.frozenAt = make(chan struct{}), time.Now()
	for _, x := range s.execs {
		x.disarmLocked()
	}
}

// Resume ends a pause. What was to happen at some time happens later by as much as the
// pause has lasted. It may be called again.
func (s *SimServer) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen == nil {
		return
	}
	lasted := time.Since(s.frozenAt)
	close(s.frozen)
	s.frozen = nil
	for _, id := range s.order {
		x := s.execs[id]
		for _, at := range []*time.Time{&x.wakes, &x.dies} {
			if !at.IsZero() {
				*at = at.Add(lasted)
			}
		}
		x.armLocked()
	}
}

// awaitResume returns when the server is not paused. A pause that is never ended ends
// with Kill.
func (s *SimServer) awaitResume() {
	for {
		s.mu.Lock()
		frozen := s.frozen
		s.mu.Unlock()
		if frozen == nil {
			return
		}
		<-frozen
	}
}

// Save returns the state of a server that is paused. Connections are not part of it.
func (s *SimServer) Save() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frozen == nil {
		return nil, Fail(CodeInternal, "a simulated supervisor that is not paused can't be saved")
	}
	st := simState{
		Started: s.started, Setup: s.setup, Ready: s.ready, Stopping: s.stopping,
		Running: s.running, StartedN: s.startedN, FileOps: s.fileOps, IOBytes: s.ioBytes,
	}
	for _, id := range s.order {
		x := s.execs[id]
		st.Execs = append(st.Execs, simExecState{
			Exec: x.exec, Env: x.env, Workdir: x.workdir, Stdout: x.out[Stdout], Stderr: x.out[Stderr], Runs: x.runs,
			Steps: x.steps, Wakes: left(x.wakes, s.frozenAt), Dies: left(x.dies, s.frozenAt),
			Stdin: x.stdin, Reading: x.reading, Pending: x.pending, EOF: x.eof, Taken: x.taken,
		})
	}
	for _, f := range s.files {
		st.Files = append(st.Files, simFileState{f.info, f.data})
	}
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(st); err != nil {
		return nil, fmt.Errorf("save simulated supervisor: %w", err)
	}
	return b.Bytes(), nil
}

// left is the time from now to at, 0 only if at is zero.
func left(at, now time.Time) time.Duration {
	if at.IsZero() {
		return 0
	}
	return max(1, at.Sub(now))
}

// LoadSimServer makes a server of what Save has returned. It is paused.
func LoadSimServer(secret, state []byte) (*SimServer, error) {
	var st simState
	if err := gob.NewDecoder(bytes.NewReader(state)).Decode(&st); err != nil {
		return nil, fmt.Errorf("load simulated supervisor: %w", err)
	}
	now := time.Now()
	s := &SimServer{
		secret: secret, started: st.Started, setup: st.Setup, ready: st.Ready, stopping: st.Stopping,
		execs: map[string]*simExec{}, files: map[string]*simFile{},
		running: st.Running, startedN: st.StartedN, fileOps: st.FileOps, ioBytes: st.IOBytes,
		frozen: make(chan struct{}), frozenAt: now,
	}
	for _, e := range st.Execs {
		x := &simExec{
			s: s, exec: e.Exec, env: e.Env, workdir: e.Workdir, runs: e.Runs, steps: e.Steps,
			stdin: e.Stdin, reading: e.Reading, pending: e.Pending, eof: e.EOF, taken: e.Taken,
		}
		x.out[Stdout], x.out[Stderr] = e.Stdout, e.Stderr
		if e.Wakes > 0 {
			x.wakes = now.Add(e.Wakes)
		}
		if e.Dies > 0 {
			x.dies = now.Add(e.Dies)
		}
		s.execs[e.Exec.ID] = x
		s.order = append(s.order, e.Exec.ID)
	}
	for _, f := range st.Files {
		s.files[f.Info.Path] = &simFile{info: f.Info, data: f.Data}
	}
	return s, nil
}
