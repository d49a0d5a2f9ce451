// Package localhost sends names below "localhost" to this machine, as RFC 6761 wants it
// and not every resolver does: a platform on one machine gives its sandboxes such names.
package localhost

import (
	"net"
	"strings"
)

// Address returns the host:port to connect to for one that may be below localhost, such
// as data.sandbox.localhost:7443; every other one as it is.
func Address(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err == nil && strings.HasSuffix(strings.ToLower(strings.TrimSuffix(host, ".")), ".localhost") {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return address
}
