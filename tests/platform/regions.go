package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// Regions is one `sirocco up --regions`: a process for each region, and one above them.
type Regions struct {
	// Ready is what each region says of itself, in the order of their names.
	Ready []Ready
	// Dir holds everything of it.
	Dir string

	names []string
	bin   string
	cmd   *exec.Cmd
	child *child.Child
}

// StartRegions starts a platform of several regions with simulated sandboxes and returns
// once all serve. args are further flags of `sirocco up`.
func StartRegions(names []string, args ...string) (*Regions, error) {
	bin, err := Bin()
	if err != nil {
		return nil, err
	}
	port, err := ports(100*len(names) + 60)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "sirocco-regions-")
	if err != nil {
		return nil, err
	}
	r := &Regions{Dir: dir, names: names, bin: bin}
	r.cmd = exec.Command(filepath.Join(bin, "sirocco"), append([]string{
		"up", "--json", "--runtime", "sim", "--regions", strings.Join(names, ","), "--data", r.Data(), "--node-name", "r" + strconv.Itoa(os.Getpid()%100000),
		"--listen", loopback(port), "--nats-port", strconv.Itoa(port + 1), "--tunnel-port", strconv.Itoa(port + 2), "--node-port", strconv.Itoa(port + 3),
		"--tcp-ports", fmt.Sprintf("%d-%d", port+30, port+59), "--log-level", "debug",
	}, args...)...)
	log, err := os.OpenFile(r.Log(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	r.cmd.Env, r.cmd.Stderr = r.env(), log
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if r.child, err = child.Start(r.cmd, nil); err != nil {
		return nil, err
	}
	ready := make(chan error, 1)
	go func() {
		ready <- json.NewDecoder(out).Decode(&r.Ready)
		_, _ = io.Copy(io.Discard, out)
	}()
	select {
	case err = <-ready:
	case <-time.After(startLimit):
		err = fmt.Errorf("not all regions serve after %v", startLimit)
	}
	if err != nil {
		text, _ := os.ReadFile(r.Log())
		return nil, errors.Join(fmt.Errorf("start sirocco up --regions: %w\n%s", err, tail(text, 4000)), r.Stop())
	}
	return r, nil
}

// Data is the folder of its state, Log the file of its log.
func (r *Regions) Data() string { return filepath.Join(r.Dir, "data") }

// Log is the file of its log.
func (r *Regions) Log() string { return filepath.Join(r.Dir, "log") }

// Process returns the process of a region: 0 while there is none.
func (r *Regions) Process(region string) int {
	text, err := os.ReadFile(filepath.Join(r.Data(), region, "up.pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return pid
}

// Kill ends all of a region at once, its bus too, as kill -9 does. It is started again by
// the process above.
func (r *Regions) Kill(region string) error {
	pid := r.Process(region)
	if pid == 0 {
		return fmt.Errorf("region %s does not run", region)
	}
	return syscall.Kill(pid, syscall.SIGKILL)
}

// Freeze stops all of a region without ending it, as if its machines hung or its network
// were cut; Thaw lets it go on.
func (r *Regions) Freeze(region string) error { return r.signal(region, syscall.SIGSTOP) }

// Thaw lets a region go on.
func (r *Regions) Thaw(region string) error { return r.signal(region, syscall.SIGCONT) }

func (r *Regions) signal(region string, s syscall.Signal) error {
	pid := r.Process(region)
	if pid == 0 {
		return fmt.Errorf("region %s does not run", region)
	}
	return syscall.Kill(pid, s)
}

// Client returns a client of the i-th region, with the key of another one's if key is
// set.
func (r *Regions) Client(i int, key string) (*sirocco.Client, error) {
	if key == "" {
		key = r.Ready[i].Key
	}
	return sirocco.New(sirocco.Config{API: r.Ready[i].API, Key: key, CAFile: r.Ready[i].CA})
}

// Stop ends everything.
func (r *Regions) Stop() error {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.child.Done():
	case <-time.After(time.Minute):
		_ = r.cmd.Process.Kill()
		return errors.New("sirocco up --regions does not end")
	}
	return os.RemoveAll(r.Dir)
}

// CLI runs the command line, set up for the first region.
func (r *Regions) CLI(ctx context.Context, args ...string) (output string, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(r.bin, "sirocco"), args...)
	cmd.Env = r.env()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *Regions) env() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Join(r.Dir, "home"), "TMPDIR=" + os.TempDir()}
}
