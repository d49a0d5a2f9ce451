package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

func isID(s string) bool { return sandboxid.Valid(s) }

// units of sizes; those with an i are powers of 1024.
var units = map[string]float64{
	"": 1, "B": 1,
	"K": 1e3, "KB": 1e3, "KI": 1 << 10, "KIB": 1 << 10,
	"M": 1e6, "MB": 1e6, "MI": 1 << 20, "MIB": 1 << 20,
	"G": 1e9, "GB": 1e9, "GI": 1 << 30, "GIB": 1 << 30,
	"T": 1e12, "TB": 1e12, "TI": 1 << 40, "TIB": 1 << 40,
}

// parseSize reads bytes: "256Mi", "1.5G", "1048576".
func parseSize(s string) (int64, error) {
	number, unit := s, ""
	if i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' }); i >= 0 {
		number, unit = s[:i], s[i:]
	}
	factor, known := units[strings.ToUpper(strings.TrimSpace(unit))]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || n*factor >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a size such as 256Mi or 2G", s)
	}
	return int64(n * factor), nil
}

// parseCPU reads thousandths of a core: "500m", "0.5", "2".
func parseCPU(s string) (int32, error) {
	number, factor := s, 1000.0
	if milli, cut := strings.CutSuffix(s, "m"); cut {
		number, factor = milli, 1
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || n < 0 || n*factor > math.MaxInt32 || math.IsNaN(n) {
		return 0, fmt.Errorf("%q is not an amount of CPU such as 0.5, 2 or 500m", s)
	}
	return int32(math.Round(n * factor)), nil
}

// parsePort reads a port to publish: "8000", "5432/tcp", "8443/tls".
func parsePort(s string) (*siroccov1.Port, error) {
	number, kind, _ := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	protocol, known := map[string]siroccov1.Protocol{
		"": siroccov1.Protocol_PROTOCOL_HTTPS, "https": siroccov1.Protocol_PROTOCOL_HTTPS, "http": siroccov1.Protocol_PROTOCOL_HTTPS,
		"tcp": siroccov1.Protocol_PROTOCOL_TCP, "tls": siroccov1.Protocol_PROTOCOL_TLS_PASSTHROUGH,
	}[kind]
	if err != nil || n == 0 || !known {
		return nil, fmt.Errorf("%q is not a port such as 8000, 5432/tcp or 8443/tls", s)
	}
	return &siroccov1.Port{Port: uint32(n), Protocol: protocol}, nil
}

// parseNetwork reads a policy: "open", "blocked", "allow=10.1.0.0/16,1.2.3.4/32".
func parseNetwork(s string) (*siroccov1.NetworkPolicy, error) {
	switch {
	case s == "":
		return nil, nil
	case s == "open":
		return &siroccov1.NetworkPolicy{Mode: siroccov1.NetworkMode_NETWORK_MODE_OPEN}, nil
	case s == "blocked":
		return &siroccov1.NetworkPolicy{Mode: siroccov1.NetworkMode_NETWORK_MODE_BLOCKED}, nil
	}
	cidrs, allow := strings.CutPrefix(s, "allow=")
	if !allow || cidrs == "" {
		return nil, fmt.Errorf("%q is not a network policy: want open, blocked or allow=<CIDR>,…", s)
	}
	return &siroccov1.NetworkPolicy{Mode: siroccov1.NetworkMode_NETWORK_MODE_ALLOWED, AllowedCidrs: strings.Split(cidrs, ",")}, nil
}

// parsePairs reads "key=value" pairs. Where lookup is given, a key alone takes
// its value from there.
func parsePairs(flag string, pairs []string, lookup func(string) string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(pairs))
	for _, p := range pairs {
		key, value, found := strings.Cut(p, "=")
		if !found && lookup != nil {
			value, found = lookup(key), true
		}
		if !found || key == "" {
			return nil, fmt.Errorf("--%s %q is not key=value", flag, p)
		}
		m[key] = value
	}
	return m, nil
}

// stateNames are how states are written: without the prefix, in lower case.
func stateName(s siroccov1.State) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "STATE_"))
}

func causeName(c siroccov1.Cause) string {
	return strings.ToLower(strings.TrimPrefix(c.String(), "CAUSE_"))
}

func parseState(s string) (siroccov1.State, error) {
	n, known := siroccov1.State_value["STATE_"+strings.ToUpper(s)]
	if !known || n == 0 {
		return 0, fmt.Errorf("%q is not a state: want accepted, placed, starting, running, stopping, stopped or failed", s)
	}
	return siroccov1.State(n), nil
}
