package api

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/quota"
	"github.com/sirocco-run/sirocco/pkg/topology"
	"github.com/sirocco-run/sirocco/services/api/abroad"
	"github.com/spf13/pflag"
)

// Config is what an operator may choose. The zero value of each field means
// its default.
type Config struct {
	// Listen is the host:port for gRPC, Connect and REST; default
	// 127.0.0.1:7070. Beyond loopback it speaks TLS only.
	Listen string
	// CertFile and KeyFile are the PEM certificate and key of the listener.
	// Without them, beyond loopback, it has one of the region's public
	// authority (see package pki).
	CertFile, KeyFile string
	// CertNames are the names in that certificate, besides the host of Listen.
	CertNames []string

	// Limits bound what may be asked for; default admission.DefaultLimits.
	Limits *admission.Limits
	// Quota bounds each tenant that has no limits of its own (see package quota);
	// its zero value is no bound. One api process keeps to it however many creates
	// come at once; several may together pass it by what is under way in the
	// others.
	Quota quota.Limits
	// MaxImageBytes is the largest archive that may be imported; default 16 GiB.
	MaxImageBytes int64
	// WaitLimit is how long a call waits for what it asked for; default 60 s.
	WaitLimit time.Duration
	// MaxAsks is how many asks over the bus are worked on at once; default 4096.
	MaxAsks int
	// RegionLostAfter is after what silence another region counts as dead in answers
	// about its sandboxes; default 10 s. Placement goes by the weights.
	RegionLostAfter time.Duration

	// Topology shapes the streams that the api ensures at start.
	Topology topology.Options

	// BusAuth switches on that tenants log in to the bus with their API keys
	// (package busauth). The bus must be configured for it.
	BusAuth bool
	// AnonymousTenant is who a bus client without credentials is; empty: nobody.
	// For one machine only: the bus must then listen on loopback.
	AnonymousTenant string
}

// Defaults of Config.
const (
	DefaultListen        = "127.0.0.1:7070"
	DefaultWaitLimit     = time.Minute
	DefaultMaxAsks       = 4096
	DefaultMaxImageBytes = 16 << 30
)

// Flags adds a flag for each field that has one, with its default.
func (c *Config) Flags(fs *pflag.FlagSet) {
	c.Limits = &admission.Limits{}
	fs.StringVar(&c.Listen, "listen", DefaultListen, "`host:port` for gRPC, Connect and REST; beyond loopback with TLS only")
	fs.StringVar(&c.CertFile, "cert", "", "PEM `file` of the listener's certificate")
	fs.StringVar(&c.KeyFile, "key", "", "PEM `file` of the listener's key")
	fs.StringSliceVar(&c.CertNames, "cert-names", nil, "`names` in the certificate that is made when none is given")
	c.Quota.Flags(fs)
	fs.Int64Var(&c.MaxImageBytes, "max-image-bytes", DefaultMaxImageBytes, "largest image archive that may be imported, in `bytes`")
	fs.DurationVar(&c.WaitLimit, "wait-limit", DefaultWaitLimit, "how long a call waits for what it asked for")
	fs.IntVar(&c.MaxAsks, "max-asks", DefaultMaxAsks, "`number` of bus requests that are worked on at once")
	fs.DurationVar(&c.RegionLostAfter, "region-lost-after", abroad.DefaultLostAfter, "after what silence answers about the sandboxes of another region say that it is dead")
	c.Limits.Flags(fs)
	fs.IntVar(&c.Topology.Replicas, "replicas", 1, "`number` of replicas of every stream: 1 on one machine, 3 in a cluster")
	fs.DurationVar(&c.Topology.EventAge, "event-age", 7*24*time.Hour, "how long events are kept")
	fs.Int64Var(&c.Topology.EventBytes, "event-bytes", 8<<30, "how much of the events is kept at most, in `bytes`")
	fs.BoolVar(&c.BusAuth, "bus-auth", false, "let tenants log in to the bus with their API keys; the bus must be configured for it")
	fs.StringVar(&c.AnonymousTenant, "anonymous-tenant", "", "`tenant` that a bus client without credentials is; only with a bus on loopback")
}

func (c Config) withDefaults() Config {
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	if c.Limits == nil {
		limits := admission.DefaultLimits()
		c.Limits = &limits
	}
	if c.MaxImageBytes == 0 {
		c.MaxImageBytes = DefaultMaxImageBytes
	}
	if c.WaitLimit == 0 {
		c.WaitLimit = DefaultWaitLimit
	}
	if c.MaxAsks == 0 {
		c.MaxAsks = DefaultMaxAsks
	}
	if c.RegionLostAfter == 0 {
		c.RegionLostAfter = abroad.DefaultLostAfter
	}
	return c
}

func (c Config) validate() error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("--listen %q is not host:port", c.Listen)
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return errors.New("--cert and --key belong together: give both or none")
	}
	if c.MaxAsks < 1 || c.WaitLimit < 0 || c.MaxImageBytes < 1 {
		return errors.New("--max-asks, --wait-limit and --max-image-bytes may not be negative")
	}
	if c.RegionLostAfter < 0 {
		return errors.New("--region-lost-after may not be negative")
	}
	if err := c.Quota.Check(); err != nil {
		return fmt.Errorf("--max-live, --create-rate, --create-burst and --max-live-memory: %w", err)
	}
	return nil
}

// loopback says whether an address is reached from this machine only.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
