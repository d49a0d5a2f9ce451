package network

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/rundir"
)

// Defaults of Config.
const (
	DefaultStateDir     = rundir.Root
	DefaultPoolSize     = 16
	DefaultNewPerSecond = 200
	DefaultMaxFlows     = 2048
)

// Config says how a node's slots are made. Only Node has no default.
type Config struct {
	// Node is the name of the node, unique on this machine: names of interfaces,
	// table and folder derive from it. Lower-case letters, digits and dashes, at
	// most 63.
	Node string
	// StateDir is the folder under which the node keeps its own, named like the
	// node: namespaces, and which id holds which slot. It should not survive a
	// reboot. Default DefaultStateDir.
	StateDir string
	// CIDR is the range the slots' addresses come from, two for each slot. It must
	// lie in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10, with a
	// length of 16 to 30. Zero: a free /18 is chosen (8,192 slots) and kept.
	CIDR netip.Prefix
	// PoolSize is the number of slots that Run keeps ready. Default
	// DefaultPoolSize; negative: none.
	PoolSize int
	// Uplink, if set, is the only interface through which packets leave. Empty:
	// routing decides, and those with a default route are prepared.
	Uplink string
	// DNS are the resolvers sandboxes may use, IPv4. Empty: those of this machine
	// that can be used from outside of it, or else public ones.
	DNS []netip.Addr
	// Deny are further ranges that no policy can open, for example the public
	// addresses of the control plane and of this machine behind a translation.
	Deny []netip.Prefix
	// NewPerSecond limits new connections of one sandbox (any protocol; a DNS
	// query is one), with a burst of five times as many. Default
	// DefaultNewPerSecond.
	NewPerSecond int
	// MaxFlows limits the tracked connections one sandbox may have at a time.
	// Default DefaultMaxFlows.
	MaxFlows int
	// Logger, default slog.Default().
	Logger *slog.Logger
}

var (
	nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	slotID   = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,127}$`)
	ifName   = regexp.MustCompile(`^[^\s/:]{1,15}$`)
)

// complete returns the configuration with its defaults, or ErrConfig.
func (c Config) complete() (Config, error) {
	if !nodeName.MatchString(c.Node) {
		return c, fmt.Errorf("%w: node %q: want lower-case letters, digits and dashes, at most 63", ErrConfig, c.Node)
	}
	if c.StateDir == "" {
		c.StateDir = DefaultStateDir
	}
	if !filepath.IsAbs(c.StateDir) {
		return c, fmt.Errorf("%w: state folder %q is not absolute", ErrConfig, c.StateDir)
	}
	if c.CIDR.IsValid() {
		if err := rangeUsable(c.CIDR); err != nil {
			return c, err
		}
	}
	if c.Uplink != "" && !ifName.MatchString(c.Uplink) {
		return c, fmt.Errorf("%w: uplink %q is no interface name", ErrConfig, c.Uplink)
	}
	for _, a := range c.DNS {
		if !resolverUsable(a) {
			return c, fmt.Errorf("%w: resolver %s: sandboxes can use IPv4 addresses only, and neither loopback nor link-local ones", ErrConfig, a)
		}
		if c.CIDR.IsValid() && c.CIDR.Contains(a) {
			return c, fmt.Errorf("%w: resolver %s lies in the sandboxes' range %s", ErrConfig, a, c.CIDR)
		}
	}
	for _, d := range c.Deny {
		if !d.IsValid() {
			return c, fmt.Errorf("%w: a range to deny is not valid", ErrConfig)
		}
	}
	if c.NewPerSecond < 0 || c.MaxFlows < 0 || c.NewPerSecond > 1<<20 || c.MaxFlows > 1<<20 {
		return c, fmt.Errorf("%w: limits of connections must lie between 0 (the default) and %d", ErrConfig, 1<<20)
	}
	setDefault(&c.PoolSize, DefaultPoolSize)
	setDefault(&c.NewPerSecond, DefaultNewPerSecond)
	setDefault(&c.MaxFlows, DefaultMaxFlows)
	c.PoolSize = max(c.PoolSize, 0)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, nil
}

func setDefault(v *int, d int) {
	if *v == 0 {
		*v = d
	}
}

// rangeUsable checks what every range of a node must fulfil: the rules that keep
// sandboxes apart deny private ranges as a whole.
func rangeUsable(p netip.Prefix) error {
	if p.Addr().Is4() && p == p.Masked() && p.Bits() >= 16 && p.Bits() <= 30 {
		for _, home := range homes {
			if home.Overlaps(p) {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: range %s: want an IPv4 network of length 16 to 30 in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10", ErrConfig, p)
}

// names are all names on the machine that derive from the node's.
type names struct {
	table  string
	prefix string // of host interfaces; interface names have 15 characters at most
	dir    string
}

func (c Config) names() names {
	sum := sha256.Sum256([]byte(c.Node))
	short := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:6]
	return names{
		table:  "sirocco-" + c.Node,
		prefix: "s" + short + "-",
		dir:    filepath.Join(c.StateDir, c.Node),
	}
}

func (n names) link(index int) string  { return n.prefix + strconv.Itoa(index) }
func (n names) netns(index int) string { return filepath.Join(n.netnsDir(), strconv.Itoa(index)) }
func (n names) netnsDir() string       { return filepath.Join(n.dir, "netns") }
func (n names) idDir() string          { return filepath.Join(n.dir, "slots") }
func (n names) id(id string) string    { return filepath.Join(n.idDir(), id) }
func (n names) rangeFile() string      { return filepath.Join(n.dir, "range") }
func (n names) lockFile() string       { return filepath.Join(n.dir, "lock") }

// remove removes the node's folder, if nothing but the slots' is in it.
func (n names) remove() error {
	err := errors.Join(os.RemoveAll(n.netnsDir()), os.RemoveAll(n.idDir()), os.RemoveAll(n.rangeFile()), os.RemoveAll(n.lockFile()))
	_ = os.Remove(n.dir)
	return err
}

// index is the inverse of link and of the last element of netns.
func (n names) index(name string) (int, bool) {
	i, err := strconv.Atoi(strings.TrimPrefix(name, n.prefix))
	return i, err == nil && i >= 0 && (name == n.link(i) || name == strconv.Itoa(i))
}
