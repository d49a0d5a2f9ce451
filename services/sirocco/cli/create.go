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
	template                              templateFlags
	workdir, user, name, key              string
	readyCommand, onRegionLoss            string
	timeout, idle, readyTimeout, readyInt time.Duration
	startWithin, checkpoints              time.Duration
	idleActivity                          []string
	ports, portTokens, env, tags, regions []string
	readyTCP                              uint16
}

func (f *createFlags) add(fs *pflag.FlagSet) {
	f.template.add(fs)
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
	fs.Uint16Var(&f.readyTCP, "ready-tcp", 0, "ready once this `port` accepts connections")
	fs.StringVar(&f.readyCommand, "ready-cmd", "", "ready once this shell `command` exits with 0")
	fs.DurationVar(&f.readyTimeout, "ready-timeout", 0, "fail if not ready by then (default 30s)")
	fs.DurationVar(&f.readyInt, "ready-interval", 0, "how often to look (default 100ms)")
	fs.StringArrayVar(&f.regions, "region", nil, "`region` that is allowed; may be repeated (default: any)")
	fs.StringVar(&f.onRegionLoss, "on-region-loss", "", "if its region is lost: keep it there, or restore it in another (default keep)")
	fs.DurationVar(&f.checkpoints, "checkpoint-interval", 0, "with --on-region-loss restore: how often its state is copied to the other region (default 1m)")
	fs.StringVar(&f.key, "key", "", "idempotency `key`: the same key gives the same sandbox for 24 h")
	fs.DurationVar(&f.startWithin, "start-within", 0, "start nothing after so long")
}

// request turns the flags into a request. What only the platform can judge is
// left to it.
func (f *createFlags) request(getenv func(string) string, now time.Time) (*siroccov1.CreateSandboxRequest, error) {
	t, err := f.template.template()
	if err != nil {
		return nil, err
	}
	req := &siroccov1.CreateSandboxRequest{
		Image: t.GetImage(), Resources: t.GetResources(), Network: t.GetNetwork(),
		Workdir: f.workdir, User: f.user, Name: f.name, IdempotencyKey: f.key, Regions: f.regions,
	}
	for _, step := range []func(*siroccov1.CreateSandboxRequest, func(string) string) error{
		f.surroundings, f.published, f.lifetime, f.regionLoss,
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

func (f *createFlags) surroundings(req *siroccov1.CreateSandboxRequest, getenv func(string) string) (err error) {
	if req.Env, err = parsePairs("env", f.env, getenv); err != nil {
		return err
	}
	req.Tags, err = parsePairs("tag", f.tags, nil)
	return err
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

func (f *createFlags) regionLoss(req *siroccov1.CreateSandboxRequest, _ func(string) string) error {
	switch f.onRegionLoss {
	case "":
	case "keep":
		req.OnRegionLoss = siroccov1.OnRegionLoss_ON_REGION_LOSS_KEEP
	case "restore":
		req.OnRegionLoss = siroccov1.OnRegionLoss_ON_REGION_LOSS_RESTORE
	default:
		return fmt.Errorf("--on-region-loss %q is neither keep nor restore", f.onRegionLoss)
	}
	if f.checkpoints != 0 {
		req.CheckpointInterval = durationpb.New(f.checkpoints)
	}
	return nil
}
