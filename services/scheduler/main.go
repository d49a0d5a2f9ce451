// Command scheduler places sandboxes on nodes and carries out commands
package main

import (
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/services/scheduler/scheduler"
)

func main() {
	var cfg scheduler.Config
	program.Main(program.Service{
		Name: "scheduler", About: "places sandboxes on nodes and carries out commands", Flags: cfg.Flags,
		New: func(env program.Env) (program.Runner, error) { return scheduler.New(env, cfg) },
	})
}
