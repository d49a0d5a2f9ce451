package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// The interpreter runs what is in the background in goroutines and calls the
// jobs g1, g2 and so on, which is what "$!" says; it cannot end one. So the
// script is changed before it runs: each "x &" counts in jobCount, and what is
// in the background knows its number as jobNumber. Whatever such a job starts
// is noted under its number, for kill to find.
const (
	jobCount  = "__sirocco_jobs"
	jobNumber = "__sirocco_job"
)

// jobs are those of one shell.
type jobs struct {
	mu sync.Mutex
	m  map[string]*job
}

// job is one command in the background.
type job struct {
	killed  syscall.Signal
	nextKey int
	running map[int]func(syscall.Signal)
	over    bool
	done    chan struct{} // closed when over
}

func (j *jobs) get(id string) *job {
	if j.m == nil {
		j.m = map[string]*job{}
	}
	if j.m[id] == nil {
		j.m[id] = &job{running: map[int]func(syscall.Signal){}, done: make(chan struct{})}
	}
	return j.m[id]
}

// enter notes that a job has started something that stop ends; leave takes the
// note back. If the job has been killed, ok is false.
func (j *jobs) enter(id string, stop func(syscall.Signal)) (leave func(), ok bool) {
	if id == "" {
		return func() {}, true
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.get(id)
	if b.killed != 0 {
		return nil, false
	}
	b.nextKey++
	key := b.nextKey
	b.running[key] = stop
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(b.running, key)
	}, true
}

// end notes that a job has ended.
func (j *jobs) end(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if b := j.get(id); !b.over {
		b.over = true
		close(b.done)
	}
}

// ended is closed once a job has ended that tells of it.
func (j *jobs) ended(id string) <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.get(id).done
}

// killedBy returns the signal that ended a job, or zero.
func (j *jobs) killedBy(id string) syscall.Signal {
	j.mu.Lock()
	defer j.mu.Unlock()
	if b := j.m[id]; b != nil {
		return b.killed
	}
	return 0
}

// signal sends a signal to a job.
func (j *jobs) signal(id string, sig syscall.Signal) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.get(id)
	if b.killed != 0 {
		return syscall.ESRCH
	}
	if sig == 0 {
		return nil
	}
	if sig == syscall.SIGKILL || fatal(sig) {
		b.killed = sig
	}
	for _, stop := range b.running {
		stop(sig)
	}
	return nil
}

// markJobs changes the background commands of a script.
func markJobs(node syntax.Node) {
	syntax.Walk(node, func(n syntax.Node) bool {
		switch x := n.(type) {
		case *syntax.File:
			x.Stmts = markList(x.Stmts)
		case *syntax.Block:
			x.Stmts = markList(x.Stmts)
		case *syntax.Subshell:
			x.Stmts = markList(x.Stmts)
		case *syntax.CmdSubst:
			x.Stmts = markList(x.Stmts)
		case *syntax.IfClause:
			x.Cond, x.Then = markList(x.Cond), markList(x.Then)
		case *syntax.WhileClause:
			x.Cond, x.Do = markList(x.Cond), markList(x.Do)
		case *syntax.ForClause:
			x.Do = markList(x.Do)
		case *syntax.CaseItem:
			x.Stmts = markList(x.Stmts)
		}
		return true
	})
}

func markList(list []*syntax.Stmt) []*syntax.Stmt {
	var out []*syntax.Stmt
	for _, st := range list {
		if st.Background && st.Cmd != nil {
			out = append(out, markStmt(st)...)
		} else {
			out = append(out, st)
		}
	}
	return out
}

// markStmt returns what stands for one background command. The node itself is
// kept, because the caller may be walking over it.
func markStmt(st *syntax.Stmt) []*syntax.Stmt {
	if b, ok := st.Cmd.(*syntax.Block); ok && len(b.Stmts) > 0 && isMark(b.Stmts[0]) {
		return []*syntax.Stmt{st}
	}
	prog, err := syntax.NewParser().Parse(strings.NewReader(
		jobCount+"=$(("+jobCount+"+1))\n"+jobNumber+"=$"+jobCount+"\n"), "")
	if err != nil || len(prog.Stmts) != 2 {
		return []*syntax.Stmt{st}
	}
	inner := *st
	inner.Background = false
	st.Cmd = &syntax.Block{Stmts: []*syntax.Stmt{prog.Stmts[1], &inner}}
	st.Redirs, st.Negated = nil, false
	return []*syntax.Stmt{prog.Stmts[0], st}
}

func isMark(st *syntax.Stmt) bool {
	call, ok := st.Cmd.(*syntax.CallExpr)
	return ok && len(call.Assigns) == 1 && call.Assigns[0].Name != nil && call.Assigns[0].Name.Value == jobNumber
}

// kill is that of the shell: it knows jobs besides processes.
func (s *shell) kill(hc interp.HandlerContext, args []string) error {
	var rest []string
	sig, failed := syscall.SIGTERM, false
	for i, a := range args {
		id, ok := strings.CutPrefix(a, "g")
		if !ok {
			id, ok = strings.CutPrefix(a, "%")
		}
		if !ok || id == "" || strings.Trim(id, "0123456789") != "" {
			rest = append(rest, a)
			if name := strings.TrimPrefix(a, "-"); name != a && i == 0 && name != "s" && name != "l" {
				if n, err := signalNumber(name); err == nil {
					sig = n
				}
			} else if i == 1 && (args[0] == "-s" || args[0] == "-n") {
				if n, err := signalNumber(a); err == nil {
					sig = n
				}
			}
			continue
		}
		if err := s.jobs.signal(id, sig); err != nil {
			fmt.Fprintf(hc.Stderr, "kill: %s: no such job\n", a)
			failed = true
		}
	}
	code := 0
	if len(rest) == len(args) || len(rest) > 0 && !strings.HasPrefix(rest[len(rest)-1], "-") && !(len(rest) == 2 && rest[0] == "-s") {
		p := &proc{ctx: context.Background(), name: "kill", args: rest, in: strings.NewReader(""), out: hc.Stdout, err: hc.Stderr}
		var came <-chan struct{}
		if slices.Contains(rest, strconv.Itoa(os.Getpid())) {
			came = s.traps.sent(sig, s.interactive && sig == syscall.SIGINT)
		}
		code = kill(p)
		if code == 0 && came != nil {
			<-came // the action comes before the next command
		}
	}
	if failed {
		code = 1
	}
	return exitStatus(code)
}

// umask shows or sets the mask of the process, which all commands share.
func umask(hc interp.HandlerContext, args []string) error {
	if len(args) == 0 {
		old := syscall.Umask(0)
		syscall.Umask(old)
		_, err := fmt.Fprintf(hc.Stdout, "%04o\n", old)
		return err
	}
	var mask int
	if _, err := fmt.Sscanf(args[0], "%o", &mask); err != nil || mask < 0 || mask > 0o777 {
		fmt.Fprintf(hc.Stderr, "umask: bad mask %q\n", args[0])
		return interp.ExitStatus(1)
	}
	syscall.Umask(mask)
	return nil
}

// stdin is a command's input: nothing instead of none at all.
func stdin(in io.Reader) io.Reader {
	if f, ok := in.(*os.File); in == nil || ok && f == nil {
		return strings.NewReader("")
	}
	return in
}
