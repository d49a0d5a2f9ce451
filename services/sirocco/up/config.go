// Package up runs the whole platform in one process: a NATS server and all five
// services, each with a connection of its own and built by the same code as the
// programs.
package up

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/doctor"
	"github.com/sirocco-run/sirocco/pkg/natsserver"
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/services/api/api"
	"github.com/spf13/pflag"
)

const (
	// DefaultData is the folder of everything that survives a restart.
	DefaultData = "/var/lib/sirocco"
	// Tenant is whose key the first `sirocco up` makes.
	Tenant = "default"
	// nodePort is the data listener of the first node.
	nodePort = 7101
	maxNodes = 1000
	// defaultNodeName starts the names of the nodes.
	defaultNodeName = "node"
	maxSchedulers   = 64
)

// nodePrefix leaves room in the names of cgroups and network devices.
var nodePrefix = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,15}$`)

// Config of the single-machine mode.
type Config struct {
	// Nodes is how many node-agents run; what the machine has is divided. With
	// none this is a control plane, whose nodes run elsewhere.
	Nodes int
	// Schedulers is how many schedulers share the commands.
	Schedulers int
	// NodeName starts the nodes' names: node-1, node-2, … Two platforms of one
	// machine need different ones.
	NodeName string
	// Data is the folder of the state.
	Data string
	// Runtime is "gvisor" or "sim".
	Runtime string
	// Listen is the api's address; TunnelListen the host of the relay's, whose
	// port is that of the settings.
	Listen, TunnelListen string
	// NATSPort and NodePort are the bus's port and the first node's.
	NATSPort, NodePort int
	// StopSandboxes ends the sandboxes too when the platform ends.
	StopSandboxes bool
	// Regions are run as one process each; empty for a platform of one region.
	Regions []string
	// Keys is the folder of certificates and keys; default: keys in Data. Regions of
	// one platform share it.
	Keys string
	// MachineShare is how many platforms share this machine: each takes its part.
	MachineShare int
	// Faults lets the bus be slowed down and stopped on request (`sirocco fault bus`).
	Faults bool
	// Set holds flags of single services: "api.max-live=100".
	Set []string
	// Settings are those that all services have.
	Settings program.Settings
	// Check looks at the machine, once the folder is locked and before anything
	// is started; nil for no look. Its error ends the platform.
	Check func() error
	// Ready is called once everything serves; nil for none. Its error ends the
	// platform.
	Ready func(Ready) error
	// ReadyRegions is Ready for a platform of several regions.
	ReadyRegions func([]Ready) error
}

// Ready says where a platform can be reached.
type Ready struct {
	Region  string `json:"region"`
	API     string `json:"api"`
	Bus     string `json:"bus"`
	Tunnels string `json:"tunnels"`
	// Key is an operator's API key of the tenant "default".
	Key string `json:"key"`
	// CA is the file that clients of the tunnels must trust.
	CA    string `json:"ca"`
	Nodes int    `json:"nodes"`
	// Adopted is how many sandboxes of an earlier run live on.
	Adopted int `json:"adopted"`
}

// Flags adds the flags, with their defaults.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.IntVar(&c.Nodes, "nodes", 1, "`number` of node-agents; what the machine has is divided among them; 0 for a control plane alone")
	fs.IntVar(&c.Schedulers, "schedulers", 1, "`number` of schedulers, which share the commands")
	fs.StringVar(&c.NodeName, "node-name", defaultNodeName, "`name` with which the nodes' names start; two platforms of one machine need different ones")
	fs.StringVar(&c.Data, "data", DefaultData, "`folder` of all state; it must survive a restart")
	fs.StringVar(&c.Runtime, "runtime", "gvisor", "what isolates sandboxes: gvisor, or sim (nothing runs; for tests of the control plane)")
	fs.StringVar(&c.Listen, "listen", api.DefaultListen, "`host:port` of the api; beyond loopback it speaks TLS only")
	fs.StringVar(&c.TunnelListen, "tunnel-host", "127.0.0.1", "`address` on which tunnels are opened; 0.0.0.0 for all of this machine's")
	fs.IntVar(&c.NATSPort, "nats-port", natsserver.DefaultPort, "`port` of the bus, on loopback")
	fs.IntVar(&c.NodePort, "node-port", nodePort, "`port` of the first node's data listener, on loopback; the others follow")
	fs.BoolVar(&c.StopSandboxes, "stop-sandboxes", false, "end the sandboxes too when this ends")
	fs.BoolVar(&c.Faults, "faults", false, "let `sirocco fault bus` slow down and stop the bus; all that passes takes one copy more")
	fs.StringArrayVar(&c.Set, "set", nil, "`service.flag=value`: a flag of one service, such as api.max-live=100; may be repeated")
	fs.StringSliceVar(&c.Regions, "regions", nil, "`names` of several regions, such as eu,us,ap: each is a process with a bus and services of its own, and ports that are higher by 10 (its nodes' by 100) than those of the one before")
	fs.StringVar(&c.Settings.Peers, "peers", "", "other `regions` and their buses, such as \"us=nats://10.0.0.7:4333\"; they share the keys of this one")
	fs.StringVar(&c.Keys, "keys", "", "`folder` of certificates and keys (default: keys, in the folder of the state)")
	fs.IntVar(&c.MachineShare, "machine-share", 1, "`number` of platforms that share this machine: each takes its part of it")
	fs.StringVar(&c.Settings.Region, "region", program.DefaultRegion, "`name` of the region")
	c.Settings.FrontFlags(fs)
	c.Settings.WatchFlags(fs)
	// A person reads this log.
	setDefault(fs, "log-level", "warn")
	setDefault(fs, "log-format", program.FormatText)
}

func setDefault(fs *pflag.FlagSet, name, value string) {
	f := fs.Lookup(name)
	_ = f.Value.Set(value) // the flags' own values are valid
	f.DefValue = value
}

// validate completes the configuration.
func (c *Config) validate() error {
	if c.Nodes < 0 || c.Nodes > maxNodes {
		return fmt.Errorf("--nodes %d is not usable: want 0 to %d", c.Nodes, maxNodes)
	}
	if c.Schedulers < 1 || c.Schedulers > maxSchedulers {
		return fmt.Errorf("--schedulers %d is not usable: want 1 to %d", c.Schedulers, maxSchedulers)
	}
	if !subject.ValidToken(c.nodeName(c.Nodes)) || !nodePrefix.MatchString(c.NodeName) {
		return fmt.Errorf("--node-name %q is not usable: want up to 16 of a-z 0-9 -", c.NodeName)
	}
	if c.Runtime != "gvisor" && c.Runtime != "sim" {
		return fmt.Errorf("--runtime %q is neither gvisor nor sim", c.Runtime)
	}
	if c.Data == "" {
		return errors.New("--data is empty: name the folder of the state")
	}
	data, err := filepath.Abs(c.Data)
	if err != nil {
		return fmt.Errorf("--data %q: %w", c.Data, err)
	}
	c.Data = data
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("--listen %q is not host:port", c.Listen)
	}
	if c.NATSPort < 1 || c.NATSPort > 65535 {
		return fmt.Errorf("--nats-port %d is not a port", c.NATSPort)
	}
	if c.NodePort < 1 || c.NodePort+c.Nodes > 65536 {
		return fmt.Errorf("--node-port %d leaves no room for %d nodes below 65536", c.NodePort, c.Nodes)
	}
	if net.ParseIP(c.TunnelListen) == nil {
		return fmt.Errorf("--tunnel-host %q is not an IP address", c.TunnelListen)
	}
	c.Settings.NATSURL = "nats://" + net.JoinHostPort(natsserver.DefaultHost, strconv.Itoa(c.NATSPort))
	if c.MachineShare < 1 || c.MachineShare > maxRegions {
		return fmt.Errorf("--machine-share %d is not usable: want 1 to %d", c.MachineShare, maxRegions)
	}
	c.Settings.Keys = c.Keys
	if c.Keys == "" {
		c.Settings.Keys = KeysDir(c.Data)
	}
	if c.Settings.Instance == "" {
		c.Settings.Instance = "up"
	}
	return c.Settings.Validate()
}

func (c *Config) relayListen() string {
	return net.JoinHostPort(c.TunnelListen, strconv.Itoa(int(c.Settings.TunnelPort)))
}

func (c *Config) nodeListen(i int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.NodePort+i))
}

// Want says what the machine must offer for this configuration. runscVersion
// is the version of gVisor that this program drives.
func (c *Config) Want(runscVersion string) (doctor.Want, error) {
	if err := c.validate(); err != nil {
		return doctor.Want{}, err
	}
	w := doctor.Want{
		Runtime: c.Runtime, DataDir: c.Data, RunscVersion: runscVersion,
		Ports: []doctor.Port{
			{Use: "the api", Flag: "--listen", Address: c.Listen},
			{Use: "the bus", Flag: "--nats-port", Address: strings.TrimPrefix(c.Settings.NATSURL, "nats://")},
			{Use: "tunnels", Flag: "--tunnel-port", Address: c.relayListen()},
		},
	}
	for i := range c.Nodes {
		w.Ports = append(w.Ports, doctor.Port{Use: "node " + strconv.Itoa(i+1), Flag: "--node-port", Address: c.nodeListen(i)})
	}
	agents, err := c.agents()
	if err != nil {
		return w, err
	}
	if len(agents) == 0 {
		w.Runtime = "sim" // nothing runs here
		return w, nil
	}
	w.Runsc, w.Programs = agents[0].Runsc, []string{agents[0].Supervisor, agents[0].Base}
	return w, nil
}

// share divides what the machine has by the number of nodes, and leaves a part
// for everything else.
func share(total int64, nodes int) int64 { return total / int64(nodes) }

func cores() int64 { return int64(runtime.NumCPU()) }
