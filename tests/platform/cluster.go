package platform

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/rundir"
)

// listBus adds the NATS servers to the services. Their clients are told of all.
func (f *Fleet) listBus(natsd string) error {
	var urls, routes []string
	for i := range f.opts.Servers {
		urls = append(urls, "nats://"+loopback(f.busPort(i)))
		routes = append(routes, "nats://"+loopback(f.routePort(i)))
	}
	f.BusURL = strings.Join(urls, ",")
	for i := range f.opts.Servers {
		name, listens := "bus", []int{f.busPort(i)}
		args := []string{"-port", strconv.Itoa(f.busPort(i))}
		if f.opts.Servers > 1 {
			name, listens = fmt.Sprintf("bus-%d", i+1), append(listens, f.routePort(i))
			args = append(args, "-name", name, "-cluster", f.Region, "-cluster-port", strconv.Itoa(f.routePort(i)), "-routes", strings.Join(routes, ","))
		}
		dir, err := f.folder(name, filepath.Join(f.Dir, name), name)
		if err != nil {
			return err
		}
		f.add(name, natsd, listens, append(args, "-dir", dir)...)
	}
	return nil
}

// busPort is where clients reach the i-th NATS server, routePort where the others do.
func (f *Fleet) busPort(i int) int {
	if i == 0 {
		return f.port + 1
	}
	return f.port + 4 + i
}

func (f *Fleet) routePort(i int) int { return f.port + 10 + i }

// Bus returns the NATS servers.
func (f *Fleet) Bus() []*Process {
	var all []*Process
	for _, p := range f.Services {
		if p.Name == "bus" || strings.HasPrefix(p.Name, "bus-") {
			all = append(all, p)
		}
	}
	return all
}

// Leader returns the NATS server that leads a stream now.
func (f *Fleet) Leader(ctx context.Context, stream string) (*Process, error) {
	s, err := f.JS.Stream(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("look up the leader of %s: %w", stream, err)
	}
	cluster := s.CachedInfo().Cluster
	if cluster == nil {
		return f.Bus()[0], nil
	}
	bus := f.Bus()
	i := slices.IndexFunc(bus, func(p *Process) bool { return p.Name == cluster.Leader })
	if i < 0 {
		return nil, fmt.Errorf("stream %s has the leader %q", stream, cluster.Leader)
	}
	return bus[i], nil
}

// group gives each service a cgroup, by which the network can be cut around it, and
// all that it started is found at the end.
func (f *Fleet) group() (err error) {
	for _, p := range f.Services {
		if p.group, err = newGroup(f.Region, p.Name); err != nil {
			return err
		}
		p.alien = f.opts.Faults && p.Name == "relay"
	}
	if f.opts.Faults {
		f.Net, err = openNetwork(f.Region)
	}
	return err
}

// clear removes everything of a fleet whose services have ended. Processes that they
// should have ended are an error, and killed.
func (f *Fleet) clear() error {
	var errs []error
	left := false
	for _, p := range f.Services {
		if p.group == nil {
			continue
		}
		if err := p.group.close(); err != nil {
			left = true
			errs = append(errs, fmt.Errorf("%s has left processes: %w", p.Name, err), p.group.kill())
		}
	}
	if left {
		errs = append(errs, f.Wreck())
	}
	for _, d := range f.Disks {
		errs = append(errs, d.close())
	}
	if f.Net != nil {
		errs = append(errs, f.Net.close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clear up a fleet: %w", err)
	}
	return os.RemoveAll(f.Dir)
}

// Wreck removes what nodes have left on this machine whose processes have ended; it is
// for what should not have been left.
func (f *Fleet) Wreck() error {
	var errs []error
	for _, n := range f.Nodes {
		if _, err := os.Stat(rundir.Of(n)); err == nil {
			errs = append(errs, wreck(n))
		}
	}
	return errors.Join(errs...)
}
