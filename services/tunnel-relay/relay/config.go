package relay

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spf13/pflag"
)

// Config is what an operator may choose. The zero value of a field means its
// default, that of Flags.
type Config struct {
	// Listen is the host:port of HTTPS, TLS passthrough and the data services.
	Listen string
	// TCPBind is the address on which the public ports for raw TCP are opened.
	TCPBind string
	// CertFile and KeyFile hold the public certificate; they are read again
	// when they change. Empty: one signed by the region's own authority.
	CertFile, KeyFile string
	// ACME asks a public authority for a certificate for each name in use.
	ACME bool
	// ACMEEmail is the account's contact, ACMECA the URL of the authority's
	// directory (default: Let's Encrypt), ACMEDir the folder of accounts and
	// certificates.
	ACMEEmail, ACMECA, ACMEDir string
	// StartWait is how long a request is held for a sandbox that is starting or
	// waking.
	StartWait time.Duration
	// MoveWait is how long a request is held for a sandbox that is being moved.
	MoveWait time.Duration
	// ListenGrace is how long after a sandbox has started a request is held
	// for a port on which nothing listens yet.
	ListenGrace time.Duration
	// Drain is how long requests and streams may go on when the relay stops.
	Drain time.Duration
	// HeaderTimeout bounds the TLS handshake and the reading of a request's
	// header, each.
	HeaderTimeout time.Duration
	// IdleTimeout ends a client's connection without a request.
	IdleTimeout time.Duration
	// StallTimeout ends a connection whose client takes no byte for so long.
	StallTimeout time.Duration
	// MaxHeaderBytes bounds a request's header.
	MaxHeaderBytes int
	// MaxConns and MaxConnsPerIP bound clients' connections.
	MaxConns, MaxConnsPerIP int
	// MaxHeld bounds the requests that are held at a time.
	MaxHeld int
}

// DefaultListen is where the relay listens unless told otherwise.
const DefaultListen = "127.0.0.1:7443"

func defaults() Config {
	return Config{
		Listen: DefaultListen, TCPBind: "127.0.0.1",
		StartWait: 30 * time.Second, MoveWait: 30 * time.Second, ListenGrace: 3 * time.Second, Drain: 10 * time.Second,
		HeaderTimeout: 10 * time.Second, IdleTimeout: 3 * time.Minute, StallTimeout: 15 * time.Minute,
		MaxHeaderBytes: 64 << 10, MaxConns: 100_000, MaxConnsPerIP: 20_000, MaxHeld: 20_000,
	}
}

// Flags adds the flags of the relay, with their defaults, to fs.
func (c *Config) Flags(fs *pflag.FlagSet) {
	d := defaults()
	fs.StringVar(&c.Listen, "tunnel-listen", d.Listen, "`host:port` of HTTPS and TLS tunnels and of the data services")
	fs.StringVar(&c.TCPBind, "tcp-bind", d.TCPBind, "`address` on which the public ports for raw TCP are opened")
	fs.StringVar(&c.CertFile, "cert", "", "PEM `file` of the public certificate, read again when it changes (default: one of the region's own authority)")
	fs.StringVar(&c.KeyFile, "key", "", "PEM `file` of the public certificate's key")
	fs.BoolVar(&c.ACME, "acme", false, "get a certificate for each name in use from an ACME authority (TLS-ALPN challenge: the tunnel port must be 443 from outside)")
	fs.StringVar(&c.ACMEEmail, "acme-email", "", "contact `address` of the ACME account")
	fs.StringVar(&c.ACMECA, "acme-ca", "", "`URL` of the ACME directory (default: Let's Encrypt)")
	fs.StringVar(&c.ACMEDir, "acme-dir", "", "`folder` of ACME accounts and certificates (default: acme in the key folder)")
	fs.DurationVar(&c.StartWait, "start-wait", d.StartWait, "how long a request is held for a sandbox that is starting or waking")
	fs.DurationVar(&c.MoveWait, "move-wait", d.MoveWait, "how long a request is held for a sandbox that is being moved")
	fs.DurationVar(&c.ListenGrace, "listen-grace", d.ListenGrace, "how long after a sandbox's start a request is held for a port on which nothing listens yet")
	fs.DurationVar(&c.Drain, "tunnel-drain", d.Drain, "how long requests and streams may go on when the relay stops")
	fs.DurationVar(&c.HeaderTimeout, "header-timeout", d.HeaderTimeout, "limit of the TLS handshake and of reading a request's header, each")
	fs.DurationVar(&c.IdleTimeout, "idle-timeout", d.IdleTimeout, "how long a client's connection is kept without a request")
	fs.DurationVar(&c.StallTimeout, "stall-timeout", d.StallTimeout, "how long a client may take no byte of an answer")
	fs.IntVar(&c.MaxHeaderBytes, "max-header-bytes", d.MaxHeaderBytes, "largest header of a request, in `bytes`")
	fs.IntVar(&c.MaxConns, "max-conns", d.MaxConns, "most client connections at a time")
	fs.IntVar(&c.MaxConnsPerIP, "max-conns-per-ip", d.MaxConnsPerIP, "most connections of one client address at a time")
	fs.IntVar(&c.MaxHeld, "max-held", d.MaxHeld, "most requests held at a time")
}

func (c Config) withDefaults() Config {
	d := defaults()
	set(&c.Listen, d.Listen)
	set(&c.TCPBind, d.TCPBind)
	set(&c.StartWait, d.StartWait)
	set(&c.MoveWait, d.MoveWait)
	set(&c.ListenGrace, d.ListenGrace)
	set(&c.Drain, d.Drain)
	set(&c.HeaderTimeout, d.HeaderTimeout)
	set(&c.IdleTimeout, d.IdleTimeout)
	set(&c.StallTimeout, d.StallTimeout)
	set(&c.MaxHeaderBytes, d.MaxHeaderBytes)
	set(&c.MaxConns, d.MaxConns)
	set(&c.MaxConnsPerIP, d.MaxConnsPerIP)
	set(&c.MaxHeld, d.MaxHeld)
	return c
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate checks the configuration. The error is one sentence that names the
// flag.
func (c Config) Validate() error {
	c = c.withDefaults()
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("--tunnel-listen %q is not host:port", c.Listen)
	}
	if net.ParseIP(c.TCPBind) == nil {
		return fmt.Errorf("--tcp-bind %q is not an IP address", c.TCPBind)
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return errors.New("--cert and --key belong together: give both or none")
	}
	if c.ACME && c.CertFile != "" {
		return errors.New("--acme and --cert exclude each other: give one")
	}
	for flag, d := range map[string]time.Duration{
		"start-wait": c.StartWait, "move-wait": c.MoveWait, "listen-grace": c.ListenGrace, "tunnel-drain": c.Drain,
		"header-timeout": c.HeaderTimeout, "idle-timeout": c.IdleTimeout, "stall-timeout": c.StallTimeout,
	} {
		if d < 0 {
			return fmt.Errorf("--%s %v is negative", flag, d)
		}
	}
	if c.MaxHeaderBytes < 4<<10 {
		return fmt.Errorf("--max-header-bytes %d is too small: at least 4096", c.MaxHeaderBytes)
	}
	if c.MaxConns < 0 || c.MaxConnsPerIP < 0 || c.MaxHeld < 0 {
		return errors.New("--max-conns, --max-conns-per-ip and --max-held must not be negative")
	}
	return nil
}
