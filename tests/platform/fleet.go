package platform

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bus"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// Fleet is a region whose bus and services are processes of their own.
type Fleet struct {
	// Dir holds everything of it.
	Dir string
	// Region is its name.
	Region string
	// API, BusURL and Key say how to get in; CA signs the relay's certificate.
	API, BusURL, Key, CA string
	// Bus, API and the others by name; nodes are named too.
	Services []*Process
	Nodes    []string
	// NC and JS are a connection as a service.
	NC *nats.Conn
	JS jetstream.JetStream
	// Net cuts them off from each other; nil without FleetOptions.Faults.
	Net *Network
	// Disks are those of services that have their own, by name.
	Disks map[string]*Disk

	bin  string
	port int
	opts FleetOptions
}

// Tenant is whose key Fleet.Key is.
const Tenant = "default"

// Flags are further flags of a fleet's services, by program.
type Flags map[string][]string

// FleetOptions say what a fleet is made of.
type FleetOptions struct {
	// Flags are further ones.
	Flags Flags
	// Servers is how many NATS servers there are: 1, the default, or a cluster, in
	// which streams have as many replicas, at most 3.
	Servers int
	// Faults lets Net cut services off from each other. The relay then takes itself to
	// be on another machine, so that it reaches agents over the network.
	Faults bool
	// Disks gives services a file system of their own, of so many bytes, for their state.
	Disks map[string]int64
}

// StartFleet starts a bus, an api, two schedulers, two nodes, a relay and a
// reaper, and returns once both nodes are ready. name is as for StartUp.
func StartFleet(name string, more Flags) (*Fleet, error) {
	return StartFleetWith(name, FleetOptions{Flags: more})
}

// StartFleetWith is StartFleet with more to choose. The NATS servers of a cluster are
// the services bus-1, bus-2 and so on; one alone is bus.
func StartFleetWith(name string, opts FleetOptions) (*Fleet, error) {
	bin, err := Bin()
	if err != nil {
		return nil, err
	}
	port, err := ports(50)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "sirocco-"+name+"-")
	if err != nil {
		return nil, err
	}
	opts.Servers = max(opts.Servers, 1)
	f := &Fleet{
		Dir: dir, API: "http://" + loopback(port), CA: filepath.Join(dir, "keys", "public-ca.pem"),
		Region: name, Disks: map[string]*Disk{}, bin: bin, port: port, opts: opts,
	}
	if err := f.start(); err != nil {
		text := ""
		for _, p := range f.Services {
			if p.child != nil {
				text += fmt.Sprintf("\n%s (running: %v): %s", p.Name, p.Running(), p.LogTail(500))
			}
		}
		f.stopAll()
		return nil, errors.Join(fmt.Errorf("start a fleet: %w%s", err, text), f.clear(), f.Wreck())
	}
	return f, nil
}

func (f *Fleet) start() error {
	if err := sweep(); err != nil {
		return err
	}
	if err := f.list(); err != nil {
		return err
	}
	if err := f.group(); err != nil {
		return err
	}
	for _, p := range f.Services {
		if err := p.Start(); err != nil {
			return err
		}
	}
	return f.connect()
}

// list makes the services, with their disks, without starting them.
func (f *Fleet) list() error {
	natsd := filepath.Join(f.Dir, "natsd")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-o", natsd, "../natsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build natsd: %w: %s", err, out)
	}
	if err := f.listBus(natsd); err != nil {
		return err
	}
	f.service("api", "api", []int{f.port}, "--listen", loopback(f.port), "--replicas", strconv.Itoa(f.opts.Servers))
	f.service("scheduler", "scheduler-1", nil)
	f.service("scheduler", "scheduler-2", nil)
	f.service("tunnel-relay", "relay", []int{f.port + 2}, "--tunnel-listen", loopback(f.port+2))
	f.service("reaper", "reaper", nil, "--sweep-every", "200ms", "--inventory-every", "1s")
	for i := range 2 {
		node := fmt.Sprintf("%s-%d-%d", f.Region, os.Getpid(), i+1)
		f.Nodes = append(f.Nodes, node)
		state, err := f.folder(node, filepath.Join(f.Dir, "n", node), fmt.Sprintf("node-%d", i+1))
		if err != nil {
			return err
		}
		f.service("node-agent", node, []int{f.port + 3 + i}, "--listen", loopback(f.port+3+i), "--state-dir", state, "--image-dir", filepath.Join(f.Dir, "images"),
			"--network-slots", "8", "--cpu-millis", "4000", "--memory-bytes", strconv.Itoa(8<<30))
	}
	return nil
}

// folder returns where a service keeps its state: on the disk of that name if it has one.
func (f *Fleet) folder(service, usual, disk string) (string, error) {
	bytes, own := f.opts.Disks[disk]
	if !own {
		return usual, nil
	}
	d, err := newDisk(f.Dir, disk, bytes)
	if err != nil {
		return "", err
	}
	f.Disks[service] = d
	return filepath.Join(d.Dir, "state"), nil
}

// service adds a program of the platform to the list.
func (f *Fleet) service(kind, instance string, listens []int, args ...string) {
	f.add(instance, filepath.Join(f.bin, kind), listens, append([]string{
		"--region", f.Region, "--instance", instance, "--nats-url", f.BusURL, "--keys", filepath.Join(f.Dir, "keys"), "--log-level", "debug",
		"--tunnel-port", strconv.Itoa(f.port + 2), "--tcp-ports", fmt.Sprintf("%d-%d", f.port+20, f.port+49),
	}, slices.Concat(args, f.opts.Flags[kind])...)...)
}

func (f *Fleet) add(instance, program string, listens []int, args ...string) {
	f.Services = append(f.Services, &Process{
		Name: instance, path: program, args: args, ports: listens, log: filepath.Join(f.Dir, instance+".log"),
		env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.Dir, "TMPDIR=" + os.TempDir()},
	})
}

// Service returns a service by its name.
func (f *Fleet) Service(name string) *Process {
	return f.Services[slices.IndexFunc(f.Services, func(p *Process) bool { return p.Name == name })]
}

func (f *Fleet) connect() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if f.NC, err = bus.Connect(ctx, bus.Config{URL: f.BusURL, Name: "tests", Logger: slog.New(slog.DiscardHandler)}); err != nil {
		return err
	}
	if f.JS, err = jetstream.New(f.NC); err != nil {
		return err
	}
	return Poll(startLimit, func() string {
		// A question that nobody answers, for want of a leader, is asked again.
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if f.Key == "" {
			keys, err := apikey.Open(ctx, f.JS)
			if err != nil {
				return err.Error()
			}
			if f.Key, _, err = keys.Create(ctx, Tenant, apikey.RoleOperator, "tests"); err != nil {
				return err.Error()
			}
		}
		kv, err := f.JS.KeyValue(ctx, "sirocco-nodes")
		if err != nil {
			return err.Error()
		}
		known, err := kv.Keys(ctx)
		if err != nil || len(known) < len(f.Nodes) {
			return fmt.Sprintf("%d nodes are ready: %v", len(known), err)
		}
		return ""
	})
}

// Client returns a client of the tenant.
func (f *Fleet) Client() (*sirocco.Client, error) {
	return sirocco.New(sirocco.Config{API: f.API, Key: f.Key, CAFile: f.CA, Retry: 30 * time.Second})
}

// Stop ends all services and removes everything of the fleet from this machine. The
// sandboxes must have ended: it is an error if they have not, and they are killed.
func (f *Fleet) Stop() error {
	f.NC.Close()
	if f.Net != nil {
		if err := f.Net.Heal(); err != nil {
			return err
		}
	}
	f.stopAll()
	err := Poll(10*time.Second, func() string { return Left(filepath.Join(f.Dir, "n")) })
	return errors.Join(err, f.clear())
}

func (f *Fleet) stopAll() {
	for i := len(f.Services) - 1; i >= 0; i-- {
		if p := f.Services[i]; p.child != nil {
			p.Thaw()
			p.Stop()
		}
	}
}
