package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/sirocco-run/sirocco/services/api/api"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/sirocco-run/sirocco/services/reaper/reaper"
	"github.com/sirocco-run/sirocco/services/scheduler/scheduler"
	"github.com/sirocco-run/sirocco/services/sirocco/cli"
	"github.com/sirocco-run/sirocco/services/sirocco/up"
	"github.com/sirocco-run/sirocco/services/tunnel-relay/relay"
	"github.com/spf13/pflag"
)

// section is the flags of one program, or those that all have.
type section struct {
	title, about string
	flags        func(*pflag.FlagSet)
}

func sections() []section {
	var settings program.Settings
	var apiCfg api.Config
	var schedulerCfg scheduler.Config
	var agentCfg agent.Config
	var relayCfg relay.Config
	var reaperCfg reaper.Config
	var upCfg up.Config
	return []section{
		{"Every service", "`api`, `scheduler`, `node-agent`, `tunnel-relay` and `reaper` have these, each beside its own. `--domain`, `--tunnel-port`, `--tcp-host`, `--tcp-ports` and `--tcp-share` must be the same in all services of a region: whoever accepts a sandbox writes its addresses into the record.", settings.Flags},
		{"api", "The public door: gRPC, Connect, REST and the asks of the bus.", apiCfg.Flags},
		{"scheduler", "Places sandboxes and carries out commands. Start as many as you like.", schedulerCfg.Flags},
		{"node-agent", "Runs the sandboxes of one node. `--instance` is the node's name; it must be unique in the region, of `a-z`, `0-9` and `-`, and stay the same across restarts.", agentCfg.Flags},
		{"tunnel-relay", "TLS and raw TCP from clients to sandboxes.", relayCfg.Flags},
		{"reaper", "Ends what is overdue, finds orphans, forgets what is over.", reaperCfg.Flags},
		{"sirocco up", "All five services and the bus in one process. Any flag of a single service goes into `--set`, such as `--set api.max-live=100 --set reaper.retention=24h`.", upCfg.Flags},
	}
}

const configurationHead = `<!-- Made by docs/gen from the programs' flags: run make docs-config, don't edit. -->
# Configuration

Everything is a flag, and every flag is also an environment variable: ` + "`--nats-url`" + ` is ` + "`SIROCCO_NATS_URL`" + `. The flag wins; an empty variable counts as unset. There are no configuration files. Durations are written ` + "`90s`, `15m`, `24h`" + `; lists with commas. ` + "`<program> --help`" + ` says the same as this page.

A service answers a wrong flag with one sentence and exit code 2, and ends with 1 when it can't go on.
`

const configurationTail = `
## Other environment variables

| variable | read by | meaning |
|---|---|---|
| ` + "`%[1]s`" + ` | ` + "`sirocco`" + ` | URL of the api, as ` + "`--api`" + ` |
| ` + "`%[2]s`" + ` | ` + "`sirocco`" + ` | API key, as ` + "`--api-key`" + ` |
| ` + "`%[3]s`" + ` | ` + "`sirocco`" + ` | PEM file of the relay's authority, as ` + "`--ca`" + ` |
| ` + "`SIROCCO_CONFIG`" + ` | ` + "`sirocco`" + ` | the command line's own file (default: ` + "`sirocco/config.json`" + ` below ` + "`XDG_CONFIG_HOME`" + `, or below ` + "`~/.config`" + `); JSON with ` + "`api`, `key` and `ca`" + `, written by ` + "`sirocco up`" + ` |
| ` + "`%[4]s`" + ` | every service | as ` + "`--otlp-endpoint`" + `, after ` + "`SIROCCO_OTLP_ENDPOINT`" + ` |
| ` + "`DOCKER_CONFIG`" + ` | ` + "`node-agent`" + ` | folder of the ` + "`config.json`" + ` with credentials for registries (default ` + "`~/.docker`" + `) |
| ` + "`SIROCCO_BIN`, `SIROCCO_RUNSC`" + ` | tests | where the built programs and runsc are (default ` + "`bin/`" + `) |

The flags of every command of the command line are in [cli.md](cli.md).
`

// configuration writes configuration.md.
func configuration() []byte {
	var out bytes.Buffer
	out.WriteString(configurationHead)
	for _, s := range sections() {
		fmt.Fprintf(&out, "\n## %s\n\n%s\n\n| flag | environment | default | meaning |\n|---|---|---|---|\n", s.title, s.about)
		fs := pflag.NewFlagSet(s.title, pflag.ContinueOnError)
		fs.SortFlags = false
		s.flags(fs)
		fs.VisitAll(func(f *pflag.Flag) { out.WriteString(row(f)) })
	}
	fmt.Fprintf(&out, configurationTail, cli.EnvAPI, cli.EnvAPIKey, cli.EnvCA, program.OTLPEnv)
	return out.Bytes()
}

// row is one line of a table.
func row(f *pflag.Flag) string {
	kind, usage := pflag.UnquoteUsage(f)
	env := "`" + program.EnvName(f.Name) + "`"
	if f.Name == "otlp-endpoint" {
		env += ", `" + program.OTLPEnv + "`"
	}
	flag := "--" + f.Name
	if kind != "" {
		flag += " " + kind
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s |\n", flag, env, defaultOf(f), strings.ReplaceAll(usage, "|", "\\|"))
}

// defaultOf writes a default. Programs look for others beside themselves, so
// those defaults depend on where this one lies.
func defaultOf(f *pflag.Flag) string {
	value := f.DefValue
	if self, err := os.Executable(); err == nil {
		if rest, ok := strings.CutPrefix(value, filepath.Dir(self)+string(filepath.Separator)); ok {
			return "`" + rest + "` beside the program"
		}
	}
	switch value {
	case "", "[]":
		return "–"
	}
	return "`" + value + "`"
}
