package up

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sirocco-run/sirocco/pkg/child"
	"github.com/sirocco-run/sirocco/pkg/natsserver"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// Several regions on one machine: each is a process of its own, with its own bus and
// all five services, exactly what `sirocco up --region` is. So one of them can be
// killed as a whole, and the others show what they do without it.

const (
	maxRegions = 8
	// portStride is what the ports of two regions differ by, nodeStride those of their
	// nodes.
	portStride, nodeStride = 10, 100
	// restartAfter is how long a region that has ended by itself stays away.
	restartAfter = 2 * time.Second
	// endTimeout bounds the end of a region that was asked to end.
	endTimeout = stopTimeout + 15*time.Second
)

// Regions runs a platform for each region, each in a process of its own.
type Regions struct {
	cfg     Config
	program string
	args    []string
	stderr  io.Writer
}

// NewRegions checks the configuration, whose Regions are set. program is this program,
// and args are flags of `sirocco up` that every region gets as they are.
func NewRegions(cfg Config, program string, args []string, stderr io.Writer) (*Regions, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	names := cfg.Regions
	if len(names) > maxRegions {
		return nil, fmt.Errorf("--regions names %d regions: want at most %d", len(names), maxRegions)
	}
	r := &Regions{cfg: cfg, program: program, args: args, stderr: stderr}
	for i, name := range names {
		if !subject.ValidToken(name) || !nodePrefix.MatchString(r.nodes(name)) {
			return nil, fmt.Errorf("--regions: %q is not usable: want up to 16 of a-z 0-9 -, --node-name included if that is given", name)
		}
		if slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("--regions names %s twice", name)
		}
	}
	return r, nil
}

// Run starts the regions and keeps them running until ctx ends; then it ends them, and
// their sandboxes if the configuration says so. It calls Config.ReadyRegions once all
// serve. A region that ends by itself, or is killed, is started again.
//
// Concurrency: one goroutine for each region; Run waits for all.
func (r *Regions) Run(ctx context.Context) error {
	if err := os.MkdirAll(r.cfg.Data, 0o700); err != nil {
		return r.cfg.unusable(err)
	}
	unlock, err := r.cfg.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := pki.Open(KeysDir(r.cfg.Data)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ready := make(chan regionReady, len(r.cfg.Regions))
	var running sync.WaitGroup
	for i := range r.cfg.Regions {
		running.Go(func() { r.keep(ctx, i, ready, cancel) })
	}
	all := make([]Ready, len(r.cfg.Regions))
	for range all {
		select {
		case one := <-ready:
			all[one.index] = one.Ready
		case <-ctx.Done():
			running.Wait()
			return ended(ctx)
		}
	}
	if r.cfg.ReadyRegions != nil {
		if err := r.cfg.ReadyRegions(all); err != nil {
			cancel(err)
		}
	}
	running.Wait()
	return ended(ctx)
}

// ended is why a context ended, if that is an error.
func ended(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

type regionReady struct {
	index int
	Ready
}

// keep runs one region, and again when it ends by itself. Before it was ready once, an
// end is final.
func (r *Regions) keep(ctx context.Context, i int, ready chan<- regionReady, fail func(error)) {
	was := false
	for {
		err := r.runOne(ctx, i, func(one Ready) {
			if !was {
				was = true
				ready <- regionReady{i, one}
			}
		})
		if ctx.Err() != nil {
			return
		}
		if !was {
			fail(fmt.Errorf("region %s did not start: %w", r.cfg.Regions[i], err))
			return
		}
		fmt.Fprintf(r.stderr, "sirocco: region %s ended (%v); it is started again in %v\n", r.cfg.Regions[i], err, restartAfter)
		select {
		case <-time.After(restartAfter):
		case <-ctx.Done():
			return
		}
	}
}

// runOne runs one region until it ends, or until ctx does, which ends it.
func (r *Regions) runOne(ctx context.Context, i int, ready func(Ready)) error {
	cmd := exec.Command(r.program, append(r.flags(i), r.args...)...) //nolint:gosec // this program
	// A signal for everything in a terminal is for this process alone, which passes
	// the end on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stderr := &prefixed{to: r.stderr, prefix: r.cfg.Regions[i] + ": "}
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	region, err := child.Start(cmd, func() error { return r.wait(cmd, stdout, ready) })
	if err != nil {
		return err
	}
	select {
	case <-region.Done():
		return region.Wait()
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	_ = cmd.Process.Signal(syscall.SIGCONT) // one that was stopped would never hear of it
	select {
	case <-region.Done():
	case <-time.After(endTimeout):
		_ = cmd.Process.Kill()
	}
	return region.Wait()
}

// wait reads the region's banner and waits for its end.
func (r *Regions) wait(cmd *exec.Cmd, stdout io.Reader, ready func(Ready)) error {
	read := bufio.NewReader(stdout)
	var one Ready
	if err := json.NewDecoder(read).Decode(&one); err == nil {
		ready(one)
	}
	_, _ = io.Copy(io.Discard, read)
	return cmd.Wait()
}

// flags are those in which regions differ.
func (r *Regions) flags(i int) []string {
	c, name := r.cfg, r.cfg.Regions[i]
	host, port, _ := net.SplitHostPort(c.Listen) // it was checked
	listen, _ := strconv.Atoi(port)
	first, last := partOf(c.Settings.TCPPorts, i, len(c.Regions))
	flags := []string{
		"up", "--json", "--region", name, "--data", filepath.Join(c.Data, name), "--keys", KeysDir(c.Data), "--peers", r.peers(),
		"--node-name", r.nodes(name), "--machine-share", strconv.Itoa(len(c.Regions)), "--faults", "--set", nameAgent + ".faults=true",
		"--listen", net.JoinHostPort(host, strconv.Itoa(listen+i*portStride)),
		"--nats-port", strconv.Itoa(c.NATSPort + i*portStride),
		"--node-port", strconv.Itoa(c.NodePort + i*nodeStride),
		"--tunnel-port", strconv.Itoa(int(c.Settings.TunnelPort) + i*portStride),
		"--domain", name + "." + c.Settings.Domain, "--tcp-ports", fmt.Sprintf("%d-%d", first, last),
	}
	if host, port, err := net.SplitHostPort(c.Settings.MetricsAddress); err == nil {
		n, _ := strconv.Atoi(port)
		flags = append(flags, "--metrics-listen", net.JoinHostPort(host, strconv.Itoa(n+i*portStride)))
	}
	return flags
}

// nodes starts the names of a region's nodes.
func (r *Regions) nodes(region string) string {
	if r.cfg.NodeName == defaultNodeName {
		return region
	}
	return r.cfg.NodeName + "-" + region
}

// peers names the buses of all regions.
func (r *Regions) peers() string {
	var all []string
	for i, name := range r.cfg.Regions {
		all = append(all, fmt.Sprintf("%s=nats://%s", name, net.JoinHostPort(natsserver.DefaultHost, strconv.Itoa(r.cfg.NATSPort+i*portStride))))
	}
	return strings.Join(all, ";")
}

// partOf is the i-th of n equal parts of a range of ports, which was checked.
func partOf(ports string, i, n int) (first, last int) {
	low, high, _ := strings.Cut(ports, "-")
	first, _ = strconv.Atoi(low)
	last, _ = strconv.Atoi(high)
	part := (last - first + 1) / n
	return first + i*part, first + (i+1)*part - 1
}

// prefixed writes whole lines with a prefix.
type prefixed struct {
	to     io.Writer
	prefix string
	rest   []byte
}

func (p *prefixed) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	for {
		i := slices.Index(p.rest, '\n')
		if i < 0 {
			return len(b), nil
		}
		if _, err := fmt.Fprintf(p.to, "%s%s\n", p.prefix, p.rest[:i]); err != nil {
			return 0, err
		}
		p.rest = p.rest[i+1:]
	}
}
