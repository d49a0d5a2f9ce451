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
	// API, BusURL and Key say how to get in; CA signs the relay's certificate.
	API, BusURL, Key, CA string
	// Bus, API and the others by name; nodes are named too.
	Services []*Process
	Nodes    []string
	// NC and JS are a connection as a service.
	NC *nats.Conn
	JS jetstream.JetStream
}

// Tenant is whose key Fleet.Key is.
const Tenant = "default"

// Flags are further flags of a fleet's services, by program.
type Flags map[string][]string

// StartFleet starts a bus, an api, two schedulers, two nodes, a relay and a
// reaper, and returns once both nodes are ready. name is as for StartUp.
func StartFleet(name string, more Flags) (*Fleet, error) {
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
	f := &Fleet{Dir: dir, API: "http://" + loopback(port), BusURL: "nats://" + loopback(port+1), CA: filepath.Join(dir, "keys", "public-ca.pem")}
	natsd := filepath.Join(dir, "natsd")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-o", natsd, "../natsd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build natsd: %w: %s", err, out)
	}
	add := func(instance, program string, args ...string) {
		f.Services = append(f.Services, &Process{
			Name: instance, path: program, args: args, log: filepath.Join(dir, instance+".log"),
			env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + os.TempDir()},
		})
	}
	service := func(kind, instance string, args ...string) {
		add(instance, filepath.Join(bin, kind), append([]string{
			"--region", name, "--instance", instance, "--nats-url", f.BusURL, "--keys", filepath.Join(dir, "keys"), "--log-level", "debug",
			"--tunnel-port", strconv.Itoa(port + 2), "--tcp-ports", fmt.Sprintf("%d-%d", port+10, port+39),
		}, slices.Concat(args, more[kind])...)...)
	}
	add("bus", natsd, "-dir", filepath.Join(dir, "bus"), "-port", strconv.Itoa(port+1))
	service("api", "api", "--listen", loopback(port))
	service("scheduler", "scheduler-1")
	service("scheduler", "scheduler-2")
	service("tunnel-relay", "relay", "--tunnel-listen", loopback(port+2))
	service("reaper", "reaper", "--sweep-every", "200ms", "--inventory-every", "1s")
	for i := range 2 {
		node := fmt.Sprintf("%s-%d-%d", name, os.Getpid(), i+1)
		f.Nodes = append(f.Nodes, node)
		service("node-agent", node, "--listen", loopback(port+3+i), "--state-dir", filepath.Join(dir, "n", node), "--image-dir", filepath.Join(dir, "images"),
			"--network-slots", "8", "--cpu-millis", "4000", "--memory-bytes", strconv.Itoa(8<<30))
	}
	for _, p := range f.Services {
		if err := p.Start(); err != nil {
			return nil, err
		}
	}
	if err := f.connect(); err != nil {
		text := ""
		for _, p := range f.Services {
			text += fmt.Sprintf("\n%s (running: %v): %s", p.Name, p.Running(), p.LogTail(500))
		}
		f.kill()
		return nil, errors.Join(fmt.Errorf("%w%s", err, text), os.RemoveAll(dir))
	}
	return f, nil
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

// Stop ends all services and removes the folder. The sandboxes must have ended.
func (f *Fleet) Stop() error {
	f.NC.Close()
	for i := len(f.Services) - 1; i >= 0; i-- {
		f.Services[i].Stop()
	}
	if err := Poll(10*time.Second, func() string { return Left(filepath.Join(f.Dir, "n")) }); err != nil {
		return err
	}
	return os.RemoveAll(f.Dir)
}

func (f *Fleet) kill() {
	for _, p := range f.Services {
		if p.done != nil {
			p.Kill()
		}
	}
}
