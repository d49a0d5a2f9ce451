package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/interp"
)

func statusCode(err error) int {
	if err == nil {
		return 0
	}
	var status interp.ExitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	return 126
}

func duration(v string) (time.Duration, error) {
	units := map[string]time.Duration{"": time.Second, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}
	num := strings.TrimRight(v, "smhd")
	n, err := strconv.ParseFloat(num, 64)
	unit, ok := units[v[len(num):]]
	if v == "infinity" {
		return 1<<63 - 1, nil
	}
	if err != nil || !ok || n < 0 {
		return 0, fmt.Errorf("%q is not a time", v)
	}
	return time.Duration(min(n*float64(unit), 1<<62)), nil
}

func sleep(p *proc) int {
	var total time.Duration
	for _, a := range p.args {
		d, err := duration(a)
		if err != nil {
			return p.fail(err)
		}
		total += d
	}
	if len(p.args) == 0 {
		return p.usage("seconds...")
	}
	t := time.NewTimer(total)
	defer t.Stop()
	select {
	case <-t.C:
		return 0
	case <-p.ctx.Done():
		return 130
	}
}

func signalNumber(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n < 65 {
		return syscall.Signal(n), nil
	}
	if n := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

func timeout(p *proc) int {
	args, sig := p.args, syscall.SIGTERM
	var kill time.Duration
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		var err error
		switch {
		case args[0] == "-s" && len(args) > 1:
			sig, err = signalNumber(args[1])
			args = args[2:]
		case args[0] == "-k" && len(args) > 1:
			kill, err = duration(args[1])
			args = args[2:]
		default:
			args = args[1:]
		}
		if err != nil {
			p.fail(err)
			return 125
		}
	}
	if len(args) < 2 {
		p.usage("[-s signal] [-k seconds] seconds command [argument...]")
		return 125
	}
	limit, err := duration(args[0])
	if err != nil {
		p.fail(err)
		return 125
	}
	path, err := p.lookPath(args[1])
	if err != nil {
		fmt.Fprintf(p.err, "timeout: %s: not found\n", args[1])
		return 127
	}
	cmd := exec.Command(path, args[2:]...)
	cmd.Args[0] = args[1]
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.Env = p.in, p.out, p.err, p.dir, p.env
	if err := cmd.Start(); err != nil {
		p.fail(err)
		return 126
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	if limit == 0 {
		limit = 1<<63 - 1
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return statusCode(waitStatus(err))
	case <-p.ctx.Done():
	case <-timer.C:
	}
	_ = cmd.Process.Signal(sig)
	if kill > 0 {
		select {
		case <-done: //nolint:errcheck // how it ended does not matter: it was timed out
			return 124
		case <-time.After(kill):
			_ = cmd.Process.Kill()
		}
	}
	<-done //nolint:errcheck // as above
	return 124
}

type process struct {
	pid, ppid int
	uid       uint32
	state     string
	rss       int64
	cpu       time.Duration
	comm      string
	args      string
}

func processes() []process {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var list []process
	for _, d := range dirs {
		pr := process{}
		pr.pid, _ = strconv.Atoi(filepath.Base(d))
		b, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue
		}
		open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
		if open < 0 || end < open {
			continue
		}
		pr.comm = string(b[open+1 : end])
		f := strings.Fields(string(b[end+1:]))
		if len(f) > 21 {
			pr.state = f[0]
			pr.ppid, _ = strconv.Atoi(f[1])
			user, _ := strconv.ParseInt(f[11], 10, 64)
			sys, _ := strconv.ParseInt(f[12], 10, 64)
			pr.cpu = time.Duration(user+sys) * 10 * time.Millisecond
			pages, _ := strconv.ParseInt(f[21], 10, 64)
			pr.rss = pages * int64(os.Getpagesize())
		}
		if st, err := os.Stat(d); err == nil {
			if sys, ok := st.Sys().(*syscall.Stat_t); ok {
				pr.uid = sys.Uid
			}
		}
		cmdline, _ := os.ReadFile(d + "/cmdline")
		pr.args = strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		if pr.args == "" {
			pr.args = "[" + pr.comm + "]"
		}
		list = append(list, pr)
	}
	slices.SortFunc(list, func(a, b process) int { return a.pid - b.pid })
	return list
}

func ps(p *proc) int {
	users := accounts("/etc/passwd")
	return p.buffered(func(w *bufio.Writer) int {
		fmt.Fprintf(w, "%5s %5s %-8s S %8s %8s COMMAND\n", "PID", "PPID", "USER", "RSS", "TIME")
		for _, pr := range processes() {
			cpu := fmt.Sprintf("%d:%02d", int(pr.cpu.Minutes()), int(pr.cpu.Seconds())%60)
			fmt.Fprintf(w, "%5d %5d %-8s %s %8s %8s %s\n", pr.pid, pr.ppid, nameOf(users, pr.uid), pr.state, human(pr.rss), cpu, pr.args)
		}
		return 0
	})
}

func kill(p *proc) int {
	args, sig := p.args, syscall.SIGTERM
	if len(args) > 0 && args[0] == "-l" {
		for i := 1; i < 32; i++ {
			fmt.Fprintf(p.out, "%2d %s\n", i, strings.TrimPrefix(unix.SignalName(syscall.Signal(i)), "SIG"))
		}
		return 0
	}
	if len(args) > 1 && strings.HasPrefix(args[0], "-") {
		name := args[0][1:]
		if name == "s" || name == "n" {
			name, args = args[1], args[1:]
		}
		var err error
		if sig, err = signalNumber(name); name != "-" && err != nil {
			return p.fail(err)
		}
		args = args[1:]
	}
	if len(args) == 0 {
		return p.usage("[-signal] pid...")
	}
	status := 0
	for _, a := range args {
		pid, err := strconv.Atoi(a)
		if err == nil {
			err = syscall.Kill(pid, sig)
		}
		if err != nil {
			status = p.fail(fmt.Errorf("%s: %w", a, err))
		}
	}
	return status
}

func pgrep(p *proc) int {
	sig := syscall.SIGTERM
	args := p.args
	if len(args) > 0 && p.name == "pkill" && strings.HasPrefix(args[0], "-") && args[0] != "-f" {
		s, err := signalNumber(args[0][1:])
		if err != nil {
			return p.fail(err)
		}
		sig, args = s, args[1:]
	}
	full := len(args) > 0 && args[0] == "-f"
	if full {
		args = args[1:]
	}
	if len(args) != 1 {
		return p.usage("[-f] name")
	}
	status := 1
	for _, pr := range processes() {
		what := pr.comm
		if full {
			what = pr.args
		}
		if pr.pid == os.Getpid() || !strings.Contains(what, args[0]) || p.name == "pidof" && what != args[0] {
			continue
		}
		status = 0
		if p.name == "pkill" {
			if err := syscall.Kill(pr.pid, sig); err != nil {
				status = p.fail(err)
			}
			continue
		}
		fmt.Fprintln(p.out, pr.pid)
	}
	return status
}

func which(p *proc) int {
	status := 0
	for _, a := range p.args {
		if a == "-a" {
			continue
		}
		path, err := p.lookPath(a)
		if err != nil {
			status = 1
			continue
		}
		fmt.Fprintln(p.out, path)
	}
	return status
}

func nohup(p *proc) int {
	if len(p.args) == 0 {
		return p.usage("command [argument...]")
	}
	path, err := p.lookPath(p.args[0])
	if err != nil {
		p.fail(fmt.Errorf("%s: %w", p.args[0], err))
		return 127
	}
	// A signal that is ignored stays so in the program that is executed.
	signal.Ignore(syscall.SIGHUP)
	err = syscall.Exec(path, p.args, p.env)
	p.fail(fmt.Errorf("%s: %w", path, err))
	return 126
}
