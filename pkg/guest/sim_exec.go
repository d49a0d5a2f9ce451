package guest

import (
	"strconv"
	"strings"
	"time"
)

// simExec is a pretended process. SimServer.mu guards it. It goes on by timers
// and by standard input; nothing waits in a goroutine.
type simExec struct {
	s       *SimServer
	exec    Exec
	env     []string
	workdir string
	out     [2][]byte
	runs    []Run // Next unused
	steps   [][]string
	timer   *time.Timer
	kill    *time.Timer
	wakes   time.Time // when timer goes off; zero: never
	dies    time.Time // when kill goes off; zero: never
	stdin   bool
	reading bool // cat reads standard input
	pending []byte
	eof     bool
	taken   int64
	changed chan struct{}
}

var simCommands = map[string]bool{
	"true": true, "false": true, "exit": true, "echo": true, "cat": true, "sleep": true,
	"pwd": true, "hostname": true, "env": true, "printenv": true, "sh": true, "bash": true, ":": true,
}

func simName(argv []string) string {
	if len(argv) == 0 {
		return ""
	}
	return argv[0][strings.LastIndexByte(argv[0], '/')+1:]
}

// simSteps splits a script into commands. A step that begins with "&&" runs
// only after success.
func simSteps(argv []string) [][]string {
	if n := simName(argv); (n != "sh" && n != "bash") || len(argv) < 3 || argv[1] != "-c" {
		return [][]string{argv}
	}
	var steps [][]string
	script := strings.NewReplacer("\n", ";", "&&", ";&& ").Replace(argv[2])
	for part := range strings.SplitSeq(script, ";") {
		var words []string
		for w := range strings.FieldsSeq(part) {
			words = append(words, strings.Trim(w, `"'`))
		}
		if len(words) > 0 {
			steps = append(steps, words)
		}
	}
	return steps
}

func (s *SimServer) start(r *StartRequest) (*Exec, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.execs[r.ID]; x != nil {
		return x.viewLocked(), nil
	}
	switch {
	case s.stopping:
		return nil, Fail(CodeStopping, "the sandbox is shutting down")
	case r.ID == "" || len(r.ID) > 64 || len(r.Command) == 0:
		return nil, Fail(CodeInvalid, "exec id or command is missing or too long")
	case !simCommands[simName(r.Command)]:
		return nil, Fail(CodeCommandNotFound, r.Command[0], " not found in PATH")
	}
	x := &simExec{s: s, stdin: r.Stdin || r.TTY != nil, workdir: r.Workdir, steps: simSteps(r.Command)}
	if x.workdir == "" {
		x.workdir = s.setup.Workdir
	}
	if x.workdir == "" {
		x.workdir = "/"
	}
	x.env = append(append(x.env, s.setup.Env...), r.Env...)
	x.eof = !x.stdin
	x.exec = Exec{
		ID: r.ID, Command: r.Command, PID: int32(len(s.order) + 2), StartedAt: time.Now(), TTY: r.TTY != nil,
	}
	if s.execs == nil {
		s.execs = map[string]*simExec{}
	}
	s.execs[r.ID] = x
	s.order = append(s.order, r.ID)
	if r.ID != MainExec {
		s.running++
		s.startedN++
	}
	s.notifyLocked()
	if r.Timeout > 0 {
		x.dies = time.Now().Add(r.Timeout)
		x.armLocked()
	}
	started := x.viewLocked()
	x.goOn(0)
	return started, nil
}

// goOn runs steps until one has to wait. code is that of the step before.
func (x *simExec) goOn(code int32) {
	for len(x.steps) > 0 && x.exec.End == nil {
		step := x.steps[0]
		x.steps = x.steps[1:]
		if step[0] == "&&" {
			if step = step[1:]; code != 0 || len(step) == 0 {
				continue
			}
		}
		var wait bool
		if code, wait = x.step(step); wait {
			return
		}
	}
	x.s.endLocked(x, code, "", false)
}

func (x *simExec) step(argv []string) (code int32, wait bool) {
	switch simName(argv) {
	case "true", ":", "sh", "bash":
	case "false":
		return 1, false
	case "exit":
		x.steps = nil
		if len(argv) > 1 {
			n, _ := strconv.ParseUint(argv[1], 10, 8)
			return int32(n), false
		}
	case "echo":
		words := argv[1:]
		to := Stdout
		if n := len(words); n > 0 && (words[n-1] == ">&2" || words[n-1] == "1>&2") {
			words, to = words[:n-1], Stderr
		}
		x.write(to, strings.Join(words, " ")+"\n")
	case "pwd":
		x.write(Stdout, x.workdir+"\n")
	case "hostname":
		x.write(Stdout, x.s.setup.Hostname+"\n")
	case "env":
		for _, kv := range x.env {
			x.write(Stdout, kv+"\n")
		}
	case "printenv":
		code = 1
		for _, kv := range x.env {
			if name, v, _ := strings.Cut(kv, "="); len(argv) > 1 && name == argv[1] {
				x.write(Stdout, v+"\n")
				code = 0
			}
		}
	case "sleep":
		return 0, x.sleep(argv)
	case "cat":
		if len(argv) == 1 {
			x.reading = true
			x.feed()
			return 0, x.reading
		}
		for _, p := range argv[1:] {
			f := x.s.files[p]
			if f == nil || f.info.Type != FileRegular {
				x.write(Stderr, "cat: "+p+": No such file or directory\n")
				code = 1
				continue
			}
			x.write(Stdout, string(f.data))
		}
	default:
		x.write(Stderr, argv[0]+": not found\n")
		return 127, false
	}
	return code, false
}

func (x *simExec) sleep(argv []string) (wait bool) {
	if len(argv) < 2 {
		return false
	}
	if argv[1] == "infinity" {
		return true
	}
	seconds, err := strconv.ParseFloat(argv[1], 64)
	if err != nil || seconds <= 0 {
		return false
	}
	x.wakes = time.Now().Add(time.Duration(min(seconds, 1e6) * float64(time.Second)))
	x.armLocked()
	return true
}

// armLocked starts the timers. They end with endLocked, or with a pause.
func (x *simExec) armLocked() {
	x.disarmLocked()
	if !x.wakes.IsZero() {
		x.timer = time.AfterFunc(time.Until(x.wakes), func() { x.due(func() { x.wakes = time.Time{}; x.goOn(0) }) })
	}
	if !x.dies.IsZero() {
		x.kill = time.AfterFunc(time.Until(x.dies), func() { x.due(func() { x.s.endLocked(x, 124, "SIGKILL", true) }) })
	}
}

func (x *simExec) disarmLocked() {
	for _, t := range []*time.Timer{x.timer, x.kill} {
		if t != nil {
			t.Stop()
		}
	}
}

// due does what a timer was for, unless a pause came first: what is due then, is done
// after it.
func (x *simExec) due(do func()) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	if x.s.frozen == nil && x.exec.End == nil {
		do()
	}
}

// feed moves standard input to the output of a cat that reads it.
func (x *simExec) feed() {
	if len(x.pending) > 0 {
		x.write(Stdout, string(x.pending))
		x.pending = nil
	}
	if x.eof {
		x.reading = false
	}
}

func (x *simExec) write(to Stream, data string) {
	if data == "" {
		return
	}
	if x.exec.TTY {
		to = Stdout
	}
	x.out[to] = append(x.out[to], data...)
	if n := len(x.runs); n > 0 && x.runs[n-1].Stream == to {
		x.runs[n-1].Len += int64(len(data))
	} else {
		x.runs = append(x.runs, Run{Stream: to, Len: int64(len(data))})
	}
	x.wakeLocked()
}

func (x *simExec) wakeLocked() {
	if x.changed != nil {
		close(x.changed)
		x.changed = nil
	}
}

func (s *SimServer) endLocked(x *simExec, code int32, signal string, timedOut bool) {
	if x.exec.End != nil {
		return
	}
	x.exec.End = &End{Code: code, Signal: signal, TimedOut: timedOut, At: time.Now()}
	x.disarmLocked()
	x.wakes, x.dies = time.Time{}, time.Time{}
	x.pending, x.steps, x.reading = nil, nil, false
	if x.exec.ID != MainExec {
		s.running--
	}
	x.wakeLocked()
	s.notifyLocked()
}

func (x *simExec) viewLocked() *Exec {
	v := x.exec
	v.Stdout, v.Stderr = int64(len(x.out[0])), int64(len(x.out[1]))
	return &v
}

func (s *SimServer) view(id string) *Exec {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.execs[id]; x != nil {
		return x.viewLocked()
	}
	return nil
}

func (s *SimServer) stdin(id string, off int64, data []byte, end bool) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.execs[id]
	switch {
	case x == nil:
		return 0, Fail(CodeNotFound, "no exec ", id)
	case off > x.taken:
		return x.taken, Fail(CodeGap, "standard input continues at ", strconv.FormatInt(x.taken, 10))
	}
	data = data[min(x.taken-off, int64(len(data))):]
	if x.eof || x.exec.End != nil {
		if len(data) > 0 || !x.stdin {
			return x.taken, Fail(CodeClosed, "standard input is closed")
		}
		return x.taken, nil
	}
	x.taken += int64(len(data))
	s.ioBytes += int64(len(data))
	x.pending = append(x.pending, data...)
	x.eof = end
	if x.reading {
		if x.feed(); !x.reading {
			x.goOn(0)
		}
	}
	s.notifyLocked()
	return x.taken, nil
}

func (s *SimServer) liveLocked(id string) (*simExec, error) {
	x := s.execs[id]
	switch {
	case x == nil:
		return nil, Fail(CodeNotFound, "no exec ", id)
	case x.exec.End != nil:
		return nil, Fail(CodeEnded, "process has ended")
	}
	return x, nil
}

func (s *SimServer) resize(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	x, err := s.liveLocked(id)
	if err == nil && !x.exec.TTY {
		err = Fail(CodeInvalid, "process has no terminal")
	}
	return err
}

func (s *SimServer) signal(id, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name = "SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	x, err := s.liveLocked(id)
	if err != nil {
		return err
	}
	switch name {
	case "SIGHUP":
		s.endLocked(x, 129, name, false)
	case "SIGINT":
		s.endLocked(x, 130, name, false)
	case "SIGKILL":
		s.endLocked(x, 137, name, false)
	case "SIGTERM":
		s.endLocked(x, 143, name, false)
	case "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGWINCH", "SIGQUIT", "SIGSTOP":
	default:
		return Fail(CodeInvalid, "no signal ", name)
	}
	return nil
}

// simSource shows a process to ServeOutput.
type simSource struct{ x *simExec }

func (s *SimServer) source(id string) OutputSource {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.execs[id]; x != nil {
		return simSource{x}
	}
	return nil
}

// OutputState implements OutputSource.
func (o simSource) OutputState() OutputState {
	o.x.s.mu.Lock()
	defer o.x.s.mu.Unlock()
	if o.x.changed == nil {
		o.x.changed = make(chan struct{})
	}
	return OutputState{
		Size: [2]int64{int64(len(o.x.out[0])), int64(len(o.x.out[1]))}, End: o.x.exec.End, Changed: o.x.changed,
	}
}

// ReadOutput implements OutputSource.
func (o simSource) ReadOutput(i Stream, off int64, p []byte) (int, error) {
	o.x.s.mu.Lock()
	defer o.x.s.mu.Unlock()
	return copy(p, o.x.out[i][off:]), nil
}

// OutputRun implements OutputSource. A position is the number of a run.
func (o simSource) OutputRun(pos int64) (Run, bool) {
	o.x.s.mu.Lock()
	defer o.x.s.mu.Unlock()
	if pos >= int64(len(o.x.runs)) {
		return Run{}, true
	}
	r := o.x.runs[pos]
	if pos+1 < int64(len(o.x.runs)) {
		r.Next = pos + 1
	}
	return r, true
}
