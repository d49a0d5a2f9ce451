// Package tunnel holds the public names of sandboxes' ports: how they are built
// when a sandbox is accepted, and how the relay reads them again.
package tunnel

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// Front says where the relay of a region can be reached from outside. Every
// service of a region has the same.
type Front struct {
	// Domain under which each port has a name: <port>-<id>.<Domain>.
	Domain string
	// Port of HTTPS and TLS passthrough; 443 is left out of addresses.
	Port uint16
	// Host of raw TCP addresses; default: Domain.
	TCPHost string
	// TCPFirst to TCPLast are the public ports for raw TCP.
	TCPFirst, TCPLast uint16
	// TCPShare is how many of them one tenant may hold, in percent; 0 means all.
	TCPShare int
}

// TCPPorts is how many public ports for raw TCP there are.
func (f Front) TCPPorts() int {
	if f.TCPFirst == 0 || f.TCPLast < f.TCPFirst {
		return 0
	}
	return int(f.TCPLast) - int(f.TCPFirst) + 1
}

// TCPQuota is how many of them one tenant may hold: its share, rounded up.
func (f Front) TCPQuota() int {
	if f.TCPShare <= 0 {
		return f.TCPPorts()
	}
	return (f.TCPPorts()*min(f.TCPShare, 100) + 99) / 100
}

// DataURL is the base URL of the data services (exec, files, logs).
func (f Front) DataURL() string { return "https://" + f.hostPort(f.DataHost()) }

// DataHost is the host name of the data services.
func (f Front) DataHost() string { return "data." + f.Domain }

// Host is the name of one port of one sandbox.
func (f Front) Host(port uint32, id string) string {
	return fmt.Sprintf("%d-%s.%s", port, id, f.Domain)
}

// ParseHost is the inverse of Host. The host may carry a port of its own.
func (f Front) ParseHost(host string) (port uint16, id string, err error) {
	if h, _, serr := net.SplitHostPort(host); serr == nil {
		host = h
	}
	label, ok := strings.CutSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), "."+strings.ToLower(f.Domain))
	if !ok {
		return 0, "", fmt.Errorf("host %q is not below %s", host, f.Domain)
	}
	number, id, ok := strings.Cut(label, "-")
	n, nerr := strconv.ParseUint(number, 10, 16)
	if !ok || nerr != nil || n == 0 || strconv.FormatUint(n, 10) != number || !sandboxid.Valid(id) {
		return 0, "", fmt.Errorf("host %q is not <port>-<sandbox id>.%s", host, f.Domain)
	}
	return uint16(n), id, nil
}

// Tunnel returns the public address of a port. publicPort is the raw TCP port
// that was allocated, for PROTOCOL_TCP.
func (f Front) Tunnel(id string, p *siroccov1.Port, publicPort uint16) *siroccov1.Tunnel {
	t := &siroccov1.Tunnel{Port: p.GetPort(), Protocol: p.GetProtocol(), Authenticated: p.GetBearerToken() != ""}
	switch p.GetProtocol() {
	case siroccov1.Protocol_PROTOCOL_TCP:
		host := f.TCPHost
		if host == "" {
			host = f.Domain
		}
		t.Url = "tcp://" + net.JoinHostPort(host, strconv.Itoa(int(publicPort)))
	case siroccov1.Protocol_PROTOCOL_TLS_PASSTHROUGH:
		t.Url = "tls://" + net.JoinHostPort(f.Host(p.GetPort(), id), strconv.Itoa(int(f.Port)))
	default:
		t.Url = "https://" + f.hostPort(f.Host(p.GetPort(), id)) + "/"
	}
	return t
}

// PublicPort returns the raw TCP port of a tunnel's address; 0 for any other
// protocol.
func PublicPort(t *siroccov1.Tunnel) uint16 {
	rest, ok := strings.CutPrefix(t.GetUrl(), "tcp://")
	if !ok {
		return 0
	}
	_, port, err := net.SplitHostPort(rest)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

func (f Front) hostPort(host string) string {
	if f.Port == 443 || f.Port == 0 {
		return host
	}
	return net.JoinHostPort(host, strconv.Itoa(int(f.Port)))
}

const hashPrefix = "sha256:"

// HashToken returns what is stored of a tunnel's bearer token. What is hashed
// already stays as it is.
func HashToken(token string) string {
	if token == "" || strings.HasPrefix(token, hashPrefix) {
		return token
	}
	sum := sha256.Sum256([]byte(token))
	return hashPrefix + hex.EncodeToString(sum[:])
}

// CheckToken says whether a bearer token is the one that was hashed, in a time
// that tells nothing of it. Where no token was set, none matches.
func CheckToken(hash, token string) bool {
	if !strings.HasPrefix(hash, hashPrefix) || strings.HasPrefix(token, hashPrefix) {
		return false
	}
	return subtle.ConstantTimeCompare([]byte(hash), []byte(HashToken(token))) == 1
}
