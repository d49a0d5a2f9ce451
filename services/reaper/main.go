// Command reaper ends what is overdue, finds orphans, forgets what is over
package main

import (
	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/services/reaper/reaper"
)

func main() {
	var cfg reaper.Config
	program.Main(program.Service{
		Name: "reaper", About: "ends what is overdue, finds orphans, forgets what is over", Flags: cfg.Flags,
		New: func(env program.Env) (program.Runner, error) { return reaper.New(env, cfg) },
	})
}
