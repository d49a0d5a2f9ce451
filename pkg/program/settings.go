package program

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	"github.com/spf13/pflag"
)

// Defaults of the flags that others refer to.
const (
	DefaultRegion  = "local"
	DefaultNATSURL = "nats://127.0.0.1:4333"
	DefaultDomain  = "sandbox.localhost"
	DefaultKeys    = "/var/lib/sirocco/keys"
	DefaultPorts   = "20000-20999"
)

// DefaultTunnelPort is the relay's public port for HTTPS and TLS passthrough.
const DefaultTunnelPort = 7443

// DefaultTCPShare leaves half of the ports for raw TCP to other tenants, whatever
// one does.
const DefaultTCPShare = 50

// Settings are the flags that every service has.
type Settings struct {
	Region, Instance string

	NATSURL, NATSUser            string
	NATSPassword, NATSPassFile   string
	NATSCA, NATSCert, NATSKey    string
	Peers                        string
	Keys                         string
	Domain                       string
	TunnelPort                   uint16
	TCPHost, TCPPorts            string
	TCPShare                     int
	LogLevel, LogFormat          string
	OTLPEndpoint, MetricsAddress string
}

// Flags adds the flags, with their defaults, to fs.
func (s *Settings) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&s.Region, "region", DefaultRegion, "`name` of the region that this service belongs to")
	fs.StringVar(&s.Instance, "instance", "", "`name` of this one process in the region; of a node-agent, the node's name (default: the host name)")
	s.BusFlags(fs)
	fs.StringVar(&s.Peers, "peers", "", "`regions` and their buses, such as \"eu=nats://a:4222,nats://b:4222;us=nats://c:4222\"; this one's own is passed over. User, password and certificates are those of the own bus")
	fs.StringVar(&s.Keys, "keys", DefaultKeys, "`folder` of certificates and keys; what is missing is made on first use")
	s.FrontFlags(fs)
	s.WatchFlags(fs)
}

// BusFlags adds the flags about the connection to the bus.
func (s *Settings) BusFlags(fs *pflag.FlagSet) {
	fs.StringVar(&s.NATSURL, "nats-url", DefaultNATSURL, "`URL` of the region's NATS; several separated by commas")
	fs.StringVar(&s.NATSUser, "nats-user", "", "`user` at the bus; empty for none")
	fs.StringVar(&s.NATSPassword, "nats-password", "", "`password` at the bus; prefer --nats-password-file, which other users of the machine can't see")
	fs.StringVar(&s.NATSPassFile, "nats-password-file", "", "`file` that holds the password at the bus")
	fs.StringVar(&s.NATSCA, "nats-ca", "", "PEM `file` of the authorities that sign the bus's certificate; switches TLS on")
	fs.StringVar(&s.NATSCert, "nats-cert", "", "PEM `file` of the client certificate for the bus")
	fs.StringVar(&s.NATSKey, "nats-key", "", "PEM `file` of the client certificate's key")
}

// FrontFlags adds the flags about the region's public face.
func (s *Settings) FrontFlags(fs *pflag.FlagSet) {
	fs.StringVar(&s.Domain, "domain", DefaultDomain, "`domain` below which every port of a sandbox has a name")
	fs.Uint16Var(&s.TunnelPort, "tunnel-port", DefaultTunnelPort, "public `port` of the relay for HTTPS and TLS passthrough")
	fs.StringVar(&s.TCPHost, "tcp-host", "", "`host` in the addresses of raw TCP tunnels (default: the domain)")
	fs.StringVar(&s.TCPPorts, "tcp-ports", DefaultPorts, "public `ports` for raw TCP tunnels, first-last")
	fs.IntVar(&s.TCPShare, "tcp-share", DefaultTCPShare, "how many of these ports one tenant may hold, in `percent`")
}

// WatchFlags adds the flags about logs and telemetry.
func (s *Settings) WatchFlags(fs *pflag.FlagSet) {
	fs.StringVar(&s.LogLevel, "log-level", "info", "least `level` that is logged: debug, info, warn or error")
	fs.StringVar(&s.LogFormat, "log-format", FormatJSON, "`format` of the log on standard error: json or text")
	fs.StringVar(&s.OTLPEndpoint, "otlp-endpoint", "", "`URL` of an OpenTelemetry collector (gRPC), such as http://127.0.0.1:4317; empty switches traces and pushed metrics off")
	fs.StringVar(&s.MetricsAddress, "metrics-listen", "", "`host:port` for /metrics (Prometheus), /healthz and /readyz; empty for none")
}

// Validate checks what the flags say and fills in the instance. Errors are one
// sentence that names the flag.
func (s *Settings) Validate() error {
	if !subject.ValidToken(s.Region) {
		return fmt.Errorf("--region %q is not usable: want 1 to 64 of A-Z a-z 0-9 _ -", s.Region)
	}
	if s.Instance == "" {
		s.Instance = hostInstance()
	}
	if !subject.ValidToken(s.Instance) {
		return fmt.Errorf("--instance %q is not usable: want 1 to 64 of A-Z a-z 0-9 _ -", s.Instance)
	}
	for u := range strings.SplitSeq(s.NATSURL, ",") {
		parsed, err := url.Parse(strings.TrimSpace(u))
		if err != nil || parsed.Host == "" {
			return fmt.Errorf("--nats-url %q is not a URL such as %s", u, DefaultNATSURL)
		}
	}
	if _, err := peer.Parse(s.Peers); err != nil {
		return fmt.Errorf("--peers is not usable: %w", err)
	}
	if s.NATSPassword != "" && s.NATSPassFile != "" {
		return errors.New("--nats-password and --nats-password-file exclude each other: give one")
	}
	if (s.NATSCert == "") != (s.NATSKey == "") {
		return errors.New("--nats-cert and --nats-key belong together: give both or none")
	}
	if s.Keys == "" {
		return errors.New("--keys is empty: name the folder of certificates and keys")
	}
	if s.MetricsAddress != "" {
		if _, _, err := net.SplitHostPort(s.MetricsAddress); err != nil {
			return fmt.Errorf("--metrics-listen %q is not host:port", s.MetricsAddress)
		}
	}
	_, err := s.Front()
	return err
}

// Front returns where the relay can be reached.
func (s *Settings) Front() (tunnel.Front, error) {
	f := tunnel.Front{Domain: strings.ToLower(strings.Trim(s.Domain, ".")), Port: s.TunnelPort, TCPHost: s.TCPHost}
	if f.Domain == "" || strings.ContainsAny(f.Domain, ":/ *") {
		return f, fmt.Errorf("--domain %q is not a domain name", s.Domain)
	}
	if f.Port == 0 {
		return f, errors.New("--tunnel-port 0 is not usable: want 1 to 65535")
	}
	low, high, ok := strings.Cut(s.TCPPorts, "-")
	first, err1 := strconv.ParseUint(low, 10, 16)
	last, err2 := strconv.ParseUint(high, 10, 16)
	if !ok || err1 != nil || err2 != nil || first == 0 || last < first {
		return f, fmt.Errorf("--tcp-ports %q is not a range such as %s", s.TCPPorts, DefaultPorts)
	}
	if s.TCPShare < 1 || s.TCPShare > 100 {
		return f, fmt.Errorf("--tcp-share %d is not a percentage: want 1 to 100", s.TCPShare)
	}
	f.TCPFirst, f.TCPLast, f.TCPShare = uint16(first), uint16(last), s.TCPShare
	return f, nil
}

// password returns the password of the bus, from where it was given.
func (s *Settings) password() (string, error) {
	if s.NATSPassFile == "" {
		return s.NATSPassword, nil
	}
	raw, err := os.ReadFile(s.NATSPassFile)
	if err != nil {
		return "", fmt.Errorf("read --nats-password-file: %w", err)
	}
	return strings.TrimRight(string(raw), "\r\n"), nil
}

// busTLS returns nil when TLS is not asked for.
func (s *Settings) busTLS() (*tls.Config, error) {
	if s.NATSCA == "" && s.NATSCert == "" && !strings.HasPrefix(s.NATSURL, "tls://") {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.NATSCA != "" {
		raw, err := os.ReadFile(s.NATSCA)
		if err != nil {
			return nil, fmt.Errorf("read --nats-ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(raw) {
			return nil, fmt.Errorf("--nats-ca %s holds no PEM certificate", s.NATSCA)
		}
	}
	if s.NATSCert != "" {
		pair, err := tls.LoadX509KeyPair(s.NATSCert, s.NATSKey)
		if err != nil {
			return nil, fmt.Errorf("read --nats-cert and --nats-key: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// hostInstance makes a token of the host name.
func hostInstance() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		return "host"
	}
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '-'
	}, host)
	return name[:min(len(name), 64)]
}
