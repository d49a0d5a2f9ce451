// Command api serves the public contract over gRPC, Connect, REST and the bus.
package main

import (
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/services/api/api"
)

func main() {
	var cfg api.Config
	program.Main(program.Service{
		Name:  "api",
		About: "the public door of a region: gRPC, Connect, REST and asks over the bus",
		Flags: cfg.Flags,
		New:   func(env program.Env) (program.Runner, error) { return api.New(env, cfg) },
	})
}
