package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
)

// died is the signal that a program ended by, after it printed nothing.
func died(t *testing.T, err error, printed string) syscall.Signal {
	t.Helper()
	if printed != "" {
		t.Errorf("printed %.200q", printed)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("it ended with %v", err)
	}
	ws, ok := exit.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		t.Errorf("it ended with %v and not by a signal", err)
		return 0
	}
	return ws.Signal()
}

// signals sends signals to programs: their parents must learn of them.
func signals(t *testing.T, bin string) {
	// Programs inherit what is ignored: nohup, of which this may be a child, ignores one.
	inherited := []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM}
	signal.Notify(make(chan os.Signal, 1), inherited...)
	defer signal.Reset(inherited...)
	for name, script := range map[string]string{
		"SEGV": `kill -SEGV $$; echo no`, "QUIT": `kill -s QUIT $$; echo no`, "ABRT": `(kill -ABRT $$; echo no)`, "TERM": `kill $$; echo no`,
		// Given back by the shell that had taken it.
		"BUS": `trap 'echo no' BUS; trap - BUS; kill -BUS $$; echo no`, "FPE": `trap '' FPE; trap - FPE; kill -FPE $$; echo no`,
		"INT": `trap '' INT; trap - INT; kill -INT $$; echo no`,
	} {
		want, err := signalNumber(name)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(filepath.Join(bin, "sh"), "-c", script)
		cmd.Dir = t.TempDir()
		out, err := cmd.CombinedOutput()
		if got := died(t, err, string(out)); got != want {
			t.Errorf("%s: ended by %v, want %v", script, got, want)
		}
	}
	for sig := syscall.SIGHUP; sig <= syscall.SIGSYS; sig++ {
		if !fatal(sig) {
			continue
		}
		var errs bytes.Buffer
		cmd := exec.Command(filepath.Join(bin, "cat"))
		cmd.Dir, cmd.Stderr = t.TempDir(), &errs
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Who answers has started.
		_, err = io.WriteString(in, "x")
		if _, rerr := io.ReadFull(out, make([]byte, 1)); err != nil || rerr != nil {
			t.Errorf("cat: %v, %v", err, rerr)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Error(err)
		}
		if got := died(t, cmd.Wait(), errs.String()); got != sig {
			t.Errorf("cat ended by %v, want %v", got, sig)
		}
	}
}
