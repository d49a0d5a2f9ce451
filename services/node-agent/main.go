// Command node-agent runs the sandboxes of one node
package main

import (
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
)

func main() {
	var cfg agent.Config
	program.Main(program.Service{
		Name: "node-agent", About: "runs the sandboxes of one node", Flags: cfg.Flags,
		New: func(env program.Env) (program.Runner, error) { return agent.New(env, cfg) },
	})
}
