package first

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

const (
	// JoinFile is in the bundle folder and names the cgroup.procs files of the
	// cgroups that its processes join, one a line.
	JoinFile = "launch.join"
	// joinedMark ends the name of a program that was started again inside. gVisor
	// gives the names; nothing that a tenant sends gets into them.
	joinedMark = "+"
)

var joinErr error

// JoinError returns why this process is not in the cgroups that its bundle names.
func JoinError() error { return joinErr }

// joinAndRestart moves this process into its cgroups, if its command line has a
// bundle that names some.
//
// The kernel moves a process under a lock that it takes only after every processor
// has passed a quiescent state, which takes 8 to 20 ms of doing nothing. A thread
// that moves itself needs no such lock, which version 1 allows (the file tasks). But
// the other threads, which the Go runtime has made by now, would stay outside, a way
// around the limits: so this one starts the program again, which ends all others and
// costs 2 to 3 ms. Version 2 has no such file, nor any thread that is not where its
// process is.
func joinAndRestart(args []string) error {
	cmd, bundle := Parse(args)
	if cmd == "" || strings.HasSuffix(args[0], joinedMark) {
		return nil
	}
	b, err := os.ReadFile(bundle + "/" + JoinFile)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("join cgroups: %w", err)
	}
	procs := strings.Split(string(b), "\n")
	quick := syscall.Gettid() == syscall.Getpid()
	for _, f := range procs {
		quick = quick && join(strings.TrimSuffix(f, "cgroup.procs")+"tasks") == nil
	}
	if quick {
		dropCapabilities()
		restarted := append([]string{args[0] + joinedMark}, args[1:]...)
		exe, err := os.Readlink("/proc/self/exe")
		if err == nil {
			err = syscall.Exec(exe, restarted, os.Environ())
		}
		if err != nil {
			return fmt.Errorf("start again in the cgroups: %w", err)
		}
	}
	for _, f := range procs {
		if err := join(f); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// join writes that whoever writes it is to move. A file that is not there is not made.
func join(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("0")
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// Parse finds the command (boot or gofer) and its bundle folder; cmd is empty for
// whatever has nothing to prepare. gVisor's boot may run itself again, later and
// with fewer rights; that is not a first start.
func Parse(args []string) (cmd, bundle string) {
	at := 0
	for i, a := range args {
		if i > 0 && (a == "boot" || a == "gofer") {
			at = i
			break
		}
	}
	if at == 0 {
		return "", ""
	}
	setup := args[at] != "boot"
	for i, a := range args[at+1:] {
		if v, ok := strings.CutPrefix(a, "--bundle="); ok && bundle == "" {
			bundle = v
		}
		if a == "--bundle" && bundle == "" && at+2+i < len(args) {
			bundle = args[at+2+i]
		}
		setup = setup || a == "--setup-root"
	}
	if !setup || bundle == "" {
		return "", ""
	}
	return args[at], bundle
}
