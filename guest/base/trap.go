package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// The interpreter knows the traps EXIT and ERR. Those of signals are kept here: a
// signal that has a trap is noted when it comes, ends what the shell itself does
// just now (a command without a process of its own, a wait), and its action is
// put behind that command, or before the next. Only the shell runs actions, no
// subshell, no job in the background and no part of a pipe but the last: a script
// with such traps has these marked by inside.
const inside = "__sirocco_inside"

// traps are the signals that a shell catches.
type traps struct {
	mu      sync.Mutex
	actions map[syscall.Signal]string
	ignored map[syscall.Signal]bool // by a trap
	pending []syscall.Signal
	caught  chan os.Signal
	came    chan struct{} // closed while something is pending
	nextKey int
	running map[int]func(syscall.Signal) // end what the shell does in the foreground
}

// set sets what happens at a signal: an action, nothing (""), or what happens
// without a trap (nil). keep is a signal that others of this process catch too.
func (t *traps) set(sig syscall.Signal, action *string, keep bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.actions == nil {
		t.actions, t.ignored, t.running = map[syscall.Signal]string{}, map[syscall.Signal]bool{}, map[int]func(syscall.Signal){}
		t.caught, t.came = make(chan os.Signal, 16), make(chan struct{})
		// It ends with the process, as the shell does.
		go t.follow()
	}
	_, had := t.actions[sig]
	back := had && crashes(sig) || t.ignored[sig] && fatal(sig)
	delete(t.actions, sig)
	delete(t.ignored, sig)
	signal.Stop(t.caught)
	if !keep {
		signal.Reset(sig)
	}
	switch {
	case action == nil:
		if back {
			dispose(sig, byDefault)
		}
	case *action == "" && !keep:
		signal.Ignore(sig)
		t.ignored[sig] = true
		if crashes(sig) {
			dispose(sig, ignoring)
		}
	default:
		t.actions[sig] = *action
		signal.Notify(t.caught, sig)
		if fatal(sig) {
			toRuntime(sig)
		}
	}
	for s := range t.actions {
		signal.Notify(t.caught, s)
	}
}

func (t *traps) follow() {
	for s := range t.caught {
		sig, ok := s.(syscall.Signal)
		t.mu.Lock()
		if action := t.actions[sig]; ok && action != "" && !slices.Contains(t.pending, sig) {
			if len(t.pending) == 0 {
				close(t.came)
			}
			t.pending = append(t.pending, sig)
			for _, stop := range t.running {
				stop(sig)
			}
		}
		t.mu.Unlock()
	}
}

// next takes the action of a signal that has come; sig is zero if none has.
func (t *traps) next() (sig syscall.Signal, action string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.pending) > 0 {
		sig, t.pending = t.pending[0], t.pending[1:]
		if len(t.pending) == 0 {
			t.came = make(chan struct{})
		}
		if action = t.actions[sig]; action != "" {
			return sig, action
		}
	}
	return 0, ""
}

// arrival is closed once a signal has come that has a trap; nil if there is no trap.
func (t *traps) arrival() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.came
}

// sent returns what is closed once a signal that the shell sends to itself has
// come: at once, if it has no trap and does not end the shell. keep is that of set.
func (t *traps) sent(sig syscall.Signal, keep bool) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	action, caught := t.actions[sig]
	if action != "" {
		return t.came
	}
	none := make(chan struct{})
	if !caught && !keep && fatal(sig) && !signal.Ignored(sig) {
		// The thread that takes it may be another one. The first process of a
		// namespace does not die of it.
		time.AfterFunc(time.Second, func() { close(none) })
		return none
	}
	close(none)
	return none
}

// enter notes what ends something that the shell does in the foreground; leave
// takes the note back.
func (t *traps) enter(stop func(syscall.Signal)) (leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.actions == nil {
		return func() {}
	}
	t.nextKey++
	key := t.nextKey
	t.running[key] = stop
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.running, key)
	}
}

// list prints the traps of signals as commands that set them.
func (t *traps) list(hc interp.HandlerContext) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for sig := syscall.Signal(1); sig < 65; sig++ {
		if action, ok := t.actions[sig]; ok {
			fmt.Fprintf(hc.Stdout, "trap -- %q %s\n", action, strings.TrimPrefix(unix.SignalName(sig), "SIG"))
		}
	}
}

// trap is the builtin for signals; what it returns is left to the interpreter.
func (s *shell) trap(hc interp.HandlerContext, args []string) []string {
	rest := args[1:]
	if len(rest) > 0 && rest[0] == "--" {
		rest = rest[1:]
	}
	if len(rest) == 0 {
		s.traps.list(hc)
		return args
	}
	var action *string
	if len(rest) > 1 {
		if rest[0] != "-" {
			action = &rest[0]
		}
		rest = rest[1:]
	}
	left := []string{"trap", "-"}
	if action != nil {
		left[1] = *action
	}
	for _, name := range rest {
		sig, err := signalNumber(name)
		switch {
		case name == "0":
			left = append(left, "EXIT")
		case err != nil:
			left = append(left, name) // EXIT, ERR, or an error
		case sig == syscall.SIGKILL || sig == syscall.SIGSTOP || !s.outermost(hc):
			// Nobody catches these; a subshell has no signals of its own.
		default:
			s.traps.set(sig, action, s.interactive && sig == syscall.SIGINT)
		}
	}
	if len(left) == 2 {
		return []string{":"}
	}
	return left
}

// outermost says whether a command is run by the shell itself.
func (s *shell) outermost(hc interp.HandlerContext) bool {
	return hc.Env.Get(inside).String() == "" && hc.Env.Get(jobNumber).String() == ""
}

// before puts the action of a signal that has come before a command.
func (s *shell) before(args []string) ([]string, bool) {
	sig, action := s.traps.next()
	if sig == 0 {
		return nil, false
	}
	return []string{"eval", action + "\n" + commandLine(args)}, true
}

// behind makes room for an action behind a command that may take long: what the
// action changes is known to the next, whose words are expanded before anybody is
// told of it.
func (s *shell) behind(args []string) ([]string, bool) {
	if s.traps.arrival() == nil || interp.IsBuiltin(args[0]) && args[0] != "kill" || strings.HasPrefix(args[0], own) {
		return nil, false
	}
	return []string{"eval", own + "run " + commandLine(args) + "\n" + own + "status $?"}, true
}

// commandLine is a command as a script has it.
func commandLine(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		q, err := syntax.Quote(a, syntax.LangBash)
		if err != nil {
			q = "''" // what can't be written can't have been read
		}
		words[i] = q
	}
	return strings.Join(words, " ")
}

// waitSignal waits for jobs until a signal comes that has a trap: the rest of
// the wait is then given up, with the status that tells so.
func (s *shell) waitSignal(ctx context.Context, hc interp.HandlerContext, args []string) []string {
	came := s.traps.arrival()
	if !s.tracked || came == nil {
		return args
	}
	count, _ := strconv.Atoi(hc.Env.Get(jobCount).String())
	ids := args[1:]
	if len(ids) == 0 {
		for n := range count {
			ids = append(ids, "g"+strconv.Itoa(n+1))
		}
	}
	for _, a := range ids {
		id := strings.TrimPrefix(a, "g")
		if n, err := strconv.Atoi(id); err != nil || n < 1 || n > count {
			continue // the builtin says what is wrong with it
		}
		select {
		case <-s.jobs.ended(id):
		case <-came:
			if sig, action := s.traps.next(); sig != 0 {
				return []string{"eval", action + "\n" + own + "status " + strconv.Itoa(128+int(sig))}
			}
			came = s.traps.arrival()
		case <-ctx.Done():
			return args
		}
	}
	return args
}

// catches says whether a script sets a trap of a signal.
func catches(node syntax.Node) bool {
	found := false
	syntax.Walk(node, func(n syntax.Node) bool {
		call, ok := n.(*syntax.CallExpr)
		if !ok || len(call.Args) < 2 || call.Args[0].Lit() != "trap" {
			return !found
		}
		for _, w := range call.Args[1:] {
			if _, err := signalNumber(w.Lit()); err == nil && w.Lit() != "0" {
				found = true
			}
		}
		return !found
	})
	return found
}

// markInside changes a script so that traps know where they are.
func markInside(prog *syntax.File) {
	syntax.Walk(prog, func(n syntax.Node) bool {
		switch x := n.(type) {
		case *syntax.Subshell:
			x.Stmts = append(parsed(inside+"=1"), x.Stmts...)
		case *syntax.CmdSubst:
			x.Stmts = append(parsed(inside+"=1"), x.Stmts...)
		case *syntax.BinaryCmd:
			if x.Op == syntax.Pipe || x.Op == syntax.PipeAll {
				x.X = &syntax.Stmt{Position: x.X.Position, Cmd: &syntax.Block{Stmts: append(parsed(inside+"=1"), x.X)}}
			}
		case *syntax.Stmt:
			if x.Background && x.Cmd != nil {
				markEnd(x)
			}
		}
		return true
	})
	// What comes during the last command has its action too.
	prog.Stmts = append(prog.Stmts, parsed(own+"status $?")...)
}

// markEnd makes a command in the background tell of its end, however it ends.
func markEnd(st *syntax.Stmt) {
	telling := parsed("if (:); then " + own + "ended 0; else " + own + "ended $?; fi")
	clause, ok := telling[0].Cmd.(*syntax.IfClause)
	if !ok {
		return
	}
	sub, ok := clause.Cond[0].Cmd.(*syntax.Subshell)
	if !ok {
		return
	}
	job := *st
	job.Background = false
	sub.Stmts = []*syntax.Stmt{&job}
	st.Cmd, st.Redirs, st.Negated = clause, nil, false
}

// parsed returns the statements of a text that is known to be right.
func parsed(text string) []*syntax.Stmt {
	prog, err := syntax.NewParser().Parse(strings.NewReader(text), "")
	if err != nil {
		panic(err)
	}
	return prog.Stmts
}
