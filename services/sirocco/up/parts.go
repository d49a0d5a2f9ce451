package up

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/doctor"
	"github.com/sirocco-run/sirocco/services/api/api"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/services/reaper/reaper"
	"github.com/sirocco-run/sirocco/services/scheduler/scheduler"
	"github.com/sirocco-run/sirocco/services/tunnel-relay/relay"
	"github.com/spf13/pflag"
)

// Names of the services, as in services/<name>, in --set and in logs.
const (
	nameAPI       = "api"
	nameScheduler = "scheduler"
	nameAgent     = "node-agent"
	nameRelay     = "tunnel-relay"
	nameReaper    = "reaper"
)

var names = []string{nameAPI, nameScheduler, nameAgent, nameRelay, nameReaper}

// configure gives a service its own defaults, then what this mode decides, then
// what --set says.
func (c *Config) configure(service string, flags func(*pflag.FlagSet), decided map[string]string) error {
	fs := pflag.NewFlagSet(service, pflag.ContinueOnError)
	flags(fs)
	for name, value := range decided {
		if err := fs.Set(name, value); err != nil {
			return fmt.Errorf("configure %s: --%s: %w", service, name, err)
		}
	}
	for _, s := range c.Set {
		target, value, ok := strings.Cut(s, "=")
		of, name, dotted := strings.Cut(target, ".")
		if !ok || !dotted {
			return fmt.Errorf("--set %q is not service.flag=value", s)
		}
		if !known(of) {
			return fmt.Errorf("--set %q: %q is no service: want one of %s", s, of, strings.Join(names, ", "))
		}
		if of != service {
			continue
		}
		if fs.Lookup(name) == nil {
			return fmt.Errorf("--set %q: %s has no flag --%s", s, service, name)
		}
		if err := fs.Set(name, value); err != nil {
			return fmt.Errorf("--set %q: %w", s, err)
		}
	}
	return nil
}

func known(service string) bool {
	for _, n := range names {
		if n == service {
			return true
		}
	}
	return false
}

func (c *Config) api() (cfg api.Config, err error) {
	err = c.configure(nameAPI, cfg.Flags, map[string]string{
		// The bus is on loopback only; who is on this machine without a key is
		// the tenant that the first key is for.
		"listen": c.Listen, "bus-auth": "true", "anonymous-tenant": Tenant,
	})
	return cfg, err
}

func (c *Config) scheduler() (cfg scheduler.Config, err error) {
	err = c.configure(nameScheduler, cfg.Flags, nil)
	return cfg, err
}

func (c *Config) reaper() (cfg reaper.Config, err error) {
	err = c.configure(nameReaper, cfg.Flags, nil)
	return cfg, err
}

func (c *Config) relay() (cfg relay.Config, err error) {
	err = c.configure(nameRelay, cfg.Flags, map[string]string{"tunnel-listen": c.relayListen(), "tcp-bind": c.TunnelListen})
	return cfg, err
}

// agents configures every node. Images are one folder, so that an image is
// pulled once for the machine.
func (c *Config) agents() ([]agent.Config, error) {
	decided := map[string]string{"runtime": c.Runtime, "image-dir": filepath.Join(c.Data, "images")}
	if parts := c.Nodes * c.MachineShare; parts > 1 {
		// One node alone sees to itself.
		memory, disk, err := doctor.Machine(c.Data)
		if err != nil {
			return nil, err
		}
		decided["cpu-millis"] = strconv.FormatInt(max(share(cores()*4000, parts), 1), 10)
		decided["memory-bytes"] = strconv.FormatInt(share(memory/5*4, parts), 10)
		decided["disk-bytes"] = strconv.FormatInt(share(disk, parts), 10)
	}
	all := make([]agent.Config, c.Nodes)
	for i := range all {
		decided["listen"] = c.nodeListen(i)
		decided["state-dir"] = filepath.Join(c.Data, c.nodeName(i))
		if err := c.configure(nameAgent, all[i].Flags, decided); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// nodeName is the name of a node, unique on the machine.
func (c *Config) nodeName(i int) string { return c.NodeName + "-" + strconv.Itoa(i+1) }
