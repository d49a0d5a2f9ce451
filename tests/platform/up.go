package platform

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirocco-run/sirocco/pkg/child"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// startLimit bounds the time from the start of a process until it serves.
const startLimit = time.Minute

// Up is one `sirocco up`.
type Up struct {
	// Ready is what it says of itself once it serves.
	Ready
	// Dir holds everything of it: its state (data), a home for the command line
	// and its log.
	Dir string
	// Node is the name of its first node.
	Node string
	// Metrics is the URL of its metrics.
	Metrics string

	bin   string
	args  []string
	cmd   *exec.Cmd
	child *child.Child
}

// Ready is the banner of `sirocco up`, as JSON.
type Ready struct {
	Region, API, Bus, Tunnels, Key, CA string
	Nodes, Adopted                     int
}

// StartUp starts a platform and returns once it serves. name, at most 6 letters,
// becomes part of its nodes' names. args are further flags of `sirocco up`.
func StartUp(name string, args ...string) (*Up, error) {
	bin, err := Bin()
	if err != nil {
		return nil, err
	}
	port, err := ports(40)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "sirocco-"+name+"-")
	if err != nil {
		return nil, err
	}
	node := name + "-" + strconv.Itoa(os.Getpid())
	u := &Up{Dir: dir, Node: node + "-1", Metrics: "http://" + loopback(port+9) + "/metrics", bin: bin}
	u.args = append([]string{
		"up", "--json", "--data", u.Data(), "--node-name", node, "--listen", loopback(port), "--nats-port", strconv.Itoa(port + 1),
		"--metrics-listen", loopback(port + 9), "--tunnel-port", strconv.Itoa(port + 2), "--node-port", strconv.Itoa(port + 3), "--tcp-ports", fmt.Sprintf("%d-%d", port+10, port+39),
		// A test's process that dies takes its sandboxes along.
		"--log-level", "debug", "--stop-sandboxes",
	}, args...)
	if err := u.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return u, nil
}

// Data is the folder of its state.
func (u *Up) Data() string { return filepath.Join(u.Dir, "data") }

// Log is the file of its log.
func (u *Up) Log() string { return filepath.Join(u.Dir, "log") }

// Start starts the process again, after Kill, and returns once it serves.
func (u *Up) Start() error {
	log, err := os.OpenFile(u.Log(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	u.cmd = exec.Command(filepath.Join(u.bin, "sirocco"), u.args...)
	u.cmd.Env, u.cmd.Stderr = u.env(), log
	out, err := u.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if u.child, err = child.Start(u.cmd, nil); err != nil {
		return err
	}
	ready := make(chan error, 1)
	go func() {
		u.Ready = Ready{}
		ready <- json.NewDecoder(out).Decode(&u.Ready)
		_, _ = io.Copy(io.Discard, out)
	}()
	select {
	case err = <-ready:
	case <-time.After(startLimit):
		err = fmt.Errorf("it does not serve after %v", startLimit)
	}
	if err != nil {
		u.Kill()
		text, _ := os.ReadFile(u.Log())
		return fmt.Errorf("start sirocco up: %w\n%s", err, tail(text, 4000))
	}
	return nil
}

func tail(text []byte, n int) []byte { return text[max(0, len(text)-n):] }

// Kill ends the process as kill -9 does, with its sandboxes left alone.
func (u *Up) Kill() {
	_ = u.cmd.Process.Kill()
	<-u.child.Done()
}

// Usage is what a process uses of its machine.
type Usage struct {
	Goroutines int
	// Descriptors is what each open one leads to.
	Descriptors []string
}

func (u Usage) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors", u.Goroutines, len(u.Descriptors))
}

// Usage returns what the process uses now.
func (u *Up) Usage(ctx context.Context) (Usage, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.Metrics, nil)
	if err != nil {
		return Usage{}, err
	}
	req.Close = true
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return Usage{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	var use Usage
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		// Each of the services gives the figure of the process they share.
		if rest, ok := strings.CutPrefix(lines.Text(), "go_goroutine_count{"); ok {
			if use.Goroutines, err = strconv.Atoi(rest[strings.LastIndexByte(rest, ' ')+1:]); err != nil {
				return Usage{}, err
			}
		}
	}
	if use.Goroutines == 0 {
		return Usage{}, fmt.Errorf("no goroutines in the metrics: %s", resp.Status)
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", u.cmd.Process.Pid))
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil { // else it was closed meanwhile
			use.Descriptors = append(use.Descriptors, to)
		}
	}
	return use, err
}

// Stop ends every sandbox and the process, and removes its folder. An error says
// what it left behind.
func (u *Up) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	_, stderr, code := u.CLI(ctx, nil, "down", "--data", u.Data())
	if code != 0 {
		u.Kill()
		return fmt.Errorf("sirocco down: exit code %d: %s", code, stderr)
	}
	select {
	case <-u.child.Done():
	case <-ctx.Done():
		u.Kill()
		return errors.New("sirocco up goes on after sirocco down")
	}
	if err := Poll(10*time.Second, func() string { return Left(u.Data()) }); err != nil {
		return fmt.Errorf("after sirocco down: %w", err)
	}
	return os.RemoveAll(u.Dir)
}

// env is the environment of its programs: nothing of the person's own
// configuration.
func (u *Up) env() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(u.Dir, "home"), "TMPDIR=" + os.TempDir()}
}

// CLI runs the command line as its user does and returns what it printed and its
// exit code, -1 if it could not be run.
func (u *Up) CLI(ctx context.Context, stdin io.Reader, args ...string) (stdout, stderr string, code int) {
	cmd := u.Command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		code = exit.ExitCode()
	default:
		code = -1
		fmt.Fprintln(&errs, err)
	}
	return out.String(), errs.String(), code
}

// Command prepares a call of the command line. When ctx ends it is asked to end.
func (u *Up) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(u.bin, "sirocco"), args...)
	cmd.Env = u.env()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// Client returns a client of the key's tenant; "" is the first key.
func (u *Up) Client(key string) (*sirocco.Client, error) {
	if key == "" {
		key = u.Key
	}
	return sirocco.New(sirocco.Config{API: u.API, Key: key, CAFile: u.CA})
}
