package cli_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/sirocco-run/sirocco/services/sirocco/cli"
	"golang.org/x/term"
)

func TestTerminalIsPassedOn(t *testing.T) {
	p := newPlatform(t)
	// Without a terminal here, the command still gets one.
	if got := p.sirocco(t, "", "exec", "-t", id, "--", "exit", "4"); got.code != 4 || p.exec.GetTty().GetRows() != 24 || p.exec.GetTty().GetCols() != 80 {
		t.Errorf("%+v, %v", got, p.exec)
	}
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	if err := pty.Setsize(slave, &pty.Winsize{Rows: 33, Cols: 99}); err != nil {
		t.Fatal(err)
	}
	before, err := term.GetState(int(slave.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{cli.EnvAPI: p.url, cli.EnvAPIKey: key, "TERM": "vt100"}
	var out, errs bytes.Buffer
	code := cli.Main(t.Context(), cli.Shell{In: slave, Out: &out, Err: &errs, Getenv: func(k string) string { return env[k] }, Home: t.TempDir()},
		[]string{"exec", "-it", id, "--", "exit", "5"})
	if code != 5 || p.exec.GetTty().GetRows() != 33 || p.exec.GetTty().GetCols() != 99 || !p.exec.GetStdin() || p.exec.GetEnv()["TERM"] != "vt100" {
		t.Errorf("got %d, %v, %s", code, p.exec, &errs)
	}
	after, err := term.GetState(int(slave.Fd()))
	if err != nil || *after != *before {
		t.Errorf("the terminal was left changed: %v", err)
	}
}

func TestCtrlCLeavesAFollow(t *testing.T) {
	p := newPlatform(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	stopped, stop := context.WithCancel(t.Context())
	context.AfterFunc(ctx, stop)
	var out, errs bytes.Buffer
	env := map[string]string{cli.EnvAPI: p.url, cli.EnvAPIKey: key}
	code := cli.Main(stopped, cli.Shell{In: &bytes.Buffer{}, Out: &out, Err: &errs, Getenv: func(k string) string { return env[k] }, Home: t.TempDir()}, []string{"events", "-f"})
	if code != 0 || errs.Len() > 0 {
		t.Errorf("got %d, %s", code, &errs)
	}
}
