package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/term"
	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// shell is one run of sh.
type shell struct {
	p           *proc
	runner      *interp.Runner
	interactive bool
	self        fs.FileInfo
	// replace holds where "exec" stands at the top level of a script: there it
	// replaces the process, elsewhere it runs in a subshell of a kind.
	replace map[syntax.Pos]bool
	jobs    jobs
	traps   traps
	// tracked says that all jobs tell of their end.
	tracked bool
}

// sh is the command "sh": -c, a script, or the standard input, with a prompt
// if that is a terminal.
func sh(p *proc) int {
	s := &shell{p: p, replace: map[syntax.Pos]bool{}}
	var opts []string
	script, given := "", false
	args := p.args
	for len(args) > 0 && len(args[0]) > 1 && (args[0][0] == '-' || args[0][0] == '+') {
		a := args[0]
		args = args[1:]
		if a == "--" {
			break
		}
		if strings.HasPrefix(a, "--") {
			continue // --login, --norc and the like mean nothing here
		}
		for _, c := range a[1:] {
			switch c {
			case 'c':
				given = true
			case 'i':
				s.interactive = true
			case 'l', 's':
			default:
				opts = append(opts, a[:1]+string(c))
			}
		}
	}
	if given {
		if len(args) == 0 {
			return p.usage("[-eux] [-c command] [script] [argument...]")
		}
		script, args = args[0], args[1:]
	}
	name := "sh"
	var source io.Reader = strings.NewReader(script)
	switch {
	case given:
		if len(args) > 0 {
			name, args = args[0], args[1:]
		}
	case len(args) > 0:
		name, args = args[0], args[1:]
		f, err := os.Open(p.path(name))
		if err != nil {
			p.fail(err)
			return 127
		}
		defer f.Close()
		source = f
	default:
		source = p.in
		if f, ok := p.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			s.interactive = true
		}
	}
	var err error
	s.runner, err = interp.New(
		interp.StdIO(p.in, p.out, p.err),
		interp.Interactive(s.interactive),
		interp.Params(append(append(opts, "--"), args...)...),
		interp.CallHandler(s.call),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return s.exec }),
	)
	if err != nil {
		p.fail(err)
		return 2
	}
	if s.interactive && !given && source == p.in {
		return s.loop()
	}
	return s.script(source, name)
}

// script runs a whole script.
func (s *shell) script(r io.Reader, name string) int {
	prog, err := syntax.NewParser().Parse(r, name)
	if err != nil {
		fmt.Fprintln(s.p.err, err)
		return 2
	}
	for _, st := range prog.Stmts {
		s.noteExec(st)
	}
	if catches(prog) {
		markInside(prog)
		s.tracked = true
	}
	markJobs(prog)
	return s.status(s.runner.Run(s.p.ctx, prog))
}

func (s *shell) noteExec(st *syntax.Stmt) {
	call, ok := st.Cmd.(*syntax.CallExpr)
	if ok && s.p.alone && !st.Background && !st.Negated && len(st.Redirs) == 0 && len(call.Args) > 1 && call.Args[0].Lit() == "exec" {
		s.replace[call.Pos()] = true
	}
}

func (s *shell) status(err error) int {
	if err == nil {
		return 0
	}
	var status interp.ExitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	if !errors.Is(err, context.Canceled) {
		fmt.Fprintf(s.p.err, "sh: %v\n", err)
	}
	return 1
}

// own marks what the interpreter has names for but cannot do.
const own = "builtin:"

// call replaces the process for an "exec" at the top level, and renames what
// exec does instead of the interpreter.
func (s *shell) call(ctx context.Context, args []string) ([]string, error) {
	hc := interp.HandlerCtx(ctx)
	if id := hc.Env.Get(jobNumber).String(); id != "" {
		if sig := s.jobs.killedBy(id); sig != 0 && args[0] != own+"ended" {
			return []string{"exit", strconv.Itoa(128 + int(sig))}, nil
		}
	}
	outermost := s.outermost(hc)
	if outermost {
		if both, ok := s.before(args); ok {
			return both, nil
		}
		if both, ok := s.behind(args); ok {
			return both, nil
		}
	}
	if args[0] == own+"run" {
		args = args[1:]
	}
	switch args[0] {
	case "kill", "umask":
		return append([]string{own + args[0]}, args[1:]...), nil
	case "trap":
		return s.trap(hc, args), nil
	case "wait":
		if outermost {
			return s.waitSignal(ctx, hc, args), nil
		}
	}
	if len(args) < 2 || args[0] != "exec" {
		return args, nil
	}
	if !s.replace[hc.Pos] {
		return args, nil
	}
	path, err := interp.LookPathDir(hc.Dir, hc.Env, args[1])
	if err != nil {
		return args, nil // the builtin says so
	}
	if err := os.Chdir(hc.Dir); err != nil {
		return args, nil
	}
	if err := syscall.Exec(path, args[1:], environ(hc.Env)); err != nil {
		fmt.Fprintf(s.p.err, "sh: %s: %v\n", args[1], err)
	}
	return args, nil
}

func environ(env expand.Environ) []string {
	var list []string
	env.Each(func(name string, v expand.Variable) bool {
		if v.Exported && v.Kind == expand.String {
			list = append(list, name+"="+v.String())
		}
		return true
	})
	return list
}

// exec runs a command that is no builtin: without a process, if it is one of
// this program's.
func (s *shell) exec(ctx context.Context, args []string) error {
	hc := interp.HandlerCtx(ctx)
	id := hc.Env.Get(jobNumber).String()
	switch args[0] {
	case own + "kill":
		return s.kill(hc, args[1:])
	case own + "umask":
		return umask(hc, args[1:])
	case own + "ended":
		s.jobs.end(id)
		return statusWord(args[1])
	case own + "status":
		return statusWord(args[1])
	}
	path, err := interp.LookPathDir(hc.Dir, hc.Env, args[0])
	if err != nil {
		fmt.Fprintf(hc.Stderr, "sh: %s: not found\n", args[0])
		return interp.ExitStatus(127)
	}
	if run := inProcess(filepath.Base(args[0])); run != nil && s.isSelf(path) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var caught atomic.Int32
		if id == "" {
			defer s.traps.enter(func(sig syscall.Signal) {
				caught.Store(int32(sig))
				cancel()
			})()
		}
		leave, ok := s.jobs.enter(id, func(syscall.Signal) { cancel() })
		if !ok {
			return s.ended(id, nil)
		}
		p := &proc{ctx: ctx, name: args[0], args: args[1:], in: stdin(hc.Stdin), out: hc.Stdout, err: hc.Stderr, dir: hc.Dir, env: environ(hc.Env)}
		code := run(p)
		leave()
		if sig := caught.Load(); sig != 0 && code != 0 {
			code = 128 + int(sig)
		}
		return s.ended(id, exitStatus(code))
	}
	cmd := &exec.Cmd{Path: path, Args: args, Env: environ(hc.Env), Dir: hc.Dir, Stdin: hc.Stdin, Stdout: hc.Stdout, Stderr: hc.Stderr}
	err = cmd.Start()
	if errors.Is(err, syscall.ENOEXEC) {
		// A script without a first line that names its interpreter.
		cmd = &exec.Cmd{Path: "/proc/self/exe", Args: append([]string{"sh", path}, args[1:]...), Env: cmd.Env, Dir: hc.Dir, Stdin: hc.Stdin, Stdout: hc.Stdout, Stderr: hc.Stderr}
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintf(hc.Stderr, "sh: %s: %v\n", args[0], err)
		return interp.ExitStatus(126)
	}
	leave, ok := s.jobs.enter(id, func(sig syscall.Signal) { _ = cmd.Process.Signal(sig) })
	if !ok {
		_ = cmd.Process.Kill()
		leave = func() {}
	}
	err = waitStatus(cmd.Wait())
	leave()
	return s.ended(id, err)
}

// ended is the end of a command; if its job was killed, that is the reason, and
// the next command of the job does not start.
func (s *shell) ended(id string, err error) error {
	if sig := s.jobs.killedBy(id); id != "" && sig != 0 {
		return interp.ExitStatus(128 + uint8(sig))
	}
	return err
}

func waitStatus(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return interp.ExitStatus(128 + uint8(ws.Signal()))
	}
	return exitStatus(exit.ExitCode())
}

// statusWord is the status that a word of a marked script holds.
func statusWord(word string) error {
	code, err := strconv.Atoi(word)
	if err != nil {
		return interp.ExitStatus(1)
	}
	return exitStatus(code)
}

func exitStatus(code int) error {
	if code == 0 {
		return nil
	}
	return interp.ExitStatus(uint8(code))
}

// isSelf says whether a file is this program.
func (s *shell) isSelf(path string) bool {
	if s.self == nil {
		st, err := os.Stat("/proc/self/exe")
		if err != nil {
			return false
		}
		s.self = st
	}
	st, err := os.Stat(path)
	return err == nil && os.SameFile(st, s.self)
}

// builtin runs a command that the shell has built in, like test or printf.
func builtin(p *proc) int {
	words := append([]string{filepath.Base(p.name)}, p.args...)
	for i, w := range words {
		q, err := syntax.Quote(w, syntax.LangBash)
		if err != nil {
			return p.fail(err)
		}
		words[i] = q
	}
	prog, err := syntax.NewParser().Parse(strings.NewReader("builtin "+strings.Join(words, " ")), "")
	if err != nil {
		return p.fail(err)
	}
	r, err := interp.New(interp.StdIO(p.in, p.out, p.err), interp.Env(expand.ListEnviron(p.env...)), interp.Dir(p.dir))
	if err != nil {
		return p.fail(err)
	}
	return (&shell{p: p}).status(r.Run(p.ctx, prog))
}
