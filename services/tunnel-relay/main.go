// Command tunnel-relay is the public TLS and TCP front of a region.
package main

import (
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/services/tunnel-relay/relay"
)

func main() {
	var cfg relay.Config
	program.Main(program.Service{
		Name:  "tunnel-relay",
		About: "carries clients' TLS and TCP connections to sandboxes",
		Flags: cfg.Flags,
		New:   func(env program.Env) (program.Runner, error) { return relay.New(env, cfg) },
	})
}
