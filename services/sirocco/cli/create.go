package cli

import (
	"fmt"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// createFlags are the fields of a create.
type createFlags struct {
	image, workdir, user, name, key       string
	cpu, cpuRequest, memory, memoryReq    string
	disk, network, readyCommand           string
	pids                                  int32
	timeout, idle, readyTimeout, readyInt time.Duration
	startWithin                           time.Duration
	idleActivity                          []string
	ports, portTokens, env, tags, regions []string
	readyTCP                              uint16
}

func (f *createFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.image, "image", "", "`image`: base, host, a registry reference or an imported name (default base)")
	fs.StringVar(&f.cpu, "cpu", "", "ceiling of CPU, in `cores`: 0.5, 2, 500m")
	fs.StringVar(&f.cpuRequest, "cpu-request", "", "guaranteed CPU, in `cores`")
	fs.StringVar(&f.memory, "memory", "", "ceiling of memory, a `size`: 256Mi, 1G")
	fs.StringVar(&f.memoryReq, "memory-request", "", "guaranteed memory, a `size`")
	fs.StringVar(&f.disk, "disk", "", "ceiling of what may be written to the root file system, a `size`")
	fs.Int32Var(&f.pids, "pids", 0, "ceiling of processes and threads")
	fs.DurationVar(&f.timeout, "timeout", 0, "how long the sandbox may live (default 5m, at most 24h)")
	fs.DurationVar(&f.idle, "idle", 0, "end it when nothing happens for so long (default: never)")
	fs.StringSliceVar(&f.idleActivity, "idle-activity", nil, "what counts as something: exec, tunnel (default both)")
	fs.StringArrayVarP(&f.ports, "port", "p", nil, "`port` to publish: 8000 (HTTPS), 5432/tcp, 8443/tls; may be repeated")
	fs.StringArrayVar(&f.portTokens, "port-token", nil, "`port=token`: requests to an HTTPS port must carry this bearer token")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "`NAME=value`, or NAME to take it from here; may be repeated")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "`folder` to start in (default: the image's)")
	fs.StringVarP(&f.user, "user", "u", "", "`user`: name, uid or uid:gid (default: the image's)")
	fs.StringVar(&f.name, "name", "", "`name`, unique among the tenant's running sandboxes")
	fs.StringArrayVar(&f.tags, "tag", nil, "`key=value`; may be repeated")
	fs.StringVar(&f.network, "network", "", "`policy`: open (default), blocked, or allow=<CIDR>,…")
	fs.Uint16Var(&f.readyTCP, "ready-tcp", 0, "ready once this `port` accepts connections")
	fs.StringVar(&f.readyCommand, "ready-cmd", "", "ready once this shell `command` exits with 0")
	fs.DurationVar(&f.readyTimeout, "ready-timeout", 0, "fail if not ready by then (default 30s)")
	fs.DurationVar(&f.readyInt, "ready-interval", 0, "how often to look (default 100ms)")
	fs.StringArrayVar(&f.regions, "region", nil, "`region` that is allowed; may be repeated (default: any)")
	fs.StringVar(&f.key, "key", "", "idempotency `key`: the same key gives the same sandbox for 24 h")
	fs.DurationVar(&f.startWithin, "start-within", 0, "start nothing after so long")
}

// request turns the flags into a request. What only the platform can judge is
// left to it.
func (f *createFlags) request(getenv func(string) string, now time.Time) (*siroccov1.CreateSandboxRequest, error) {
	req := &siroccov1.CreateSandboxRequest{
		Image: f.image, Workdir: f.workdir, User: f.user, Name: f.name, IdempotencyKey: f.key, Regions: f.regions,
	}
	for _, step := range []func(*siroccov1.CreateSandboxRequest, func(string) string) error{
		f.resources, f.surroundings, f.published, f.lifetime,
	} {
		if err := step(req, getenv); err != nil {
			return nil, err
		}
	}
	if f.startWithin > 0 {
		req.StartDeadline = timestamppb.New(now.Add(f.startWithin))
	}
	return req, nil
}

func (f *createFlags) resources(req *siroccov1.CreateSandboxRequest, _ func(string) string) error {
	r := &siroccov1.Resources{PidsLimit: f.pids}
	for _, c := range []struct {
		flag, text string
		to         *int32
	}{{"cpu", f.cpu, &r.CpuLimitMillis}, {"cpu-request", f.cpuRequest, &r.CpuRequestMillis}} {
		if c.text == "" {
			continue
		}
		n, err := parseCPU(c.text)
		if err != nil {
			return fmt.Errorf("--%s %w", c.flag, err)
		}
		*c.to = n
	}
	for _, s := range []struct {
		flag, text string
		to         *int64
	}{{"memory", f.memory, &r.MemoryLimitBytes}, {"memory-request", f.memoryReq, &r.MemoryRequestBytes}, {"disk", f.disk, &r.DiskLimitBytes}} {
		if s.text == "" {
			continue
		}
		n, err := parseSize(s.text)
		if err != nil {
			return fmt.Errorf("--%s %w", s.flag, err)
		}
		*s.to = n
	}
	req.Resources = r
	return nil
}

func (f *createFlags) surroundings(req *siroccov1.CreateSandboxRequest, getenv func(string) string) (err error) {
	if req.Env, err = parsePairs("env", f.env, getenv); err != nil {
		return err
	}
	if req.Tags, err = parsePairs("tag", f.tags, nil); err != nil {
		return err
	}
	if req.Network, err = parseNetwork(f.network); err != nil {
		return fmt.Errorf("--network %w", err)
	}
	return nil
}

func (f *createFlags) published(req *siroccov1.CreateSandboxRequest, _ func(string) string) error {
	tokens, err := parsePairs("port-token", f.portTokens, nil)
	if err != nil {
		return err
	}
	for _, text := range f.ports {
		p, err := parsePort(text)
		if err != nil {
			return fmt.Errorf("--port %w", err)
		}
		number := fmt.Sprint(p.GetPort())
		p.BearerToken = tokens[number]
		delete(tokens, number)
		req.Ports = append(req.Ports, p)
	}
	for number := range tokens {
		return fmt.Errorf("--port-token is for port %s, which no --port publishes", number)
	}
	return nil
}

func (f *createFlags) lifetime(req *siroccov1.CreateSandboxRequest, _ func(string) string) error {
	if f.timeout != 0 {
		req.MaxLifetime = durationpb.New(f.timeout)
	}
	if f.idle != 0 {
		req.Idle = &siroccov1.IdlePolicy{Timeout: durationpb.New(f.idle)}
		for _, a := range f.idleActivity {
			switch a {
			case "exec":
				req.Idle.Activity = append(req.Idle.Activity, siroccov1.Activity_ACTIVITY_EXEC)
			case "tunnel":
				req.Idle.Activity = append(req.Idle.Activity, siroccov1.Activity_ACTIVITY_TUNNEL)
			default:
				return fmt.Errorf("--idle-activity %q is neither exec nor tunnel", a)
			}
		}
	}
	if f.readyTCP == 0 && f.readyCommand == "" {
		return nil
	}
	if f.readyTCP != 0 && f.readyCommand != "" {
		return fmt.Errorf("--ready-tcp and --ready-cmd exclude each other: give one")
	}
	req.Readiness = &siroccov1.Probe{TcpPort: uint32(f.readyTCP)}
	if f.readyCommand != "" {
		req.Readiness.Command = []string{"sh", "-c", f.readyCommand}
	}
	if f.readyTimeout > 0 {
		req.Readiness.Timeout = durationpb.New(f.readyTimeout)
	}
	if f.readyInt > 0 {
		req.Readiness.Interval = durationpb.New(f.readyInt)
	}
	return nil
}
