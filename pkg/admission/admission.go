// Package admission decides whether a request is well-formed and fills in the
// defaults: pure functions, used by the api for what is asked and by the
// scheduler for what is published on the bus, so that both doors are one.
package admission

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Bounds of the parts of a request, in bytes or pieces.
const (
	MaxRequestBytes = 512 << 10
	maxEnvBytes     = 128 << 10
	maxCommandBytes = 128 << 10
	maxEnvVars      = 1024
	maxTags         = 64
	maxCIDRs        = 64
	maxPath         = 4096
	// MinMemoryBytes is the least memory limit with which a sandbox starts.
	MinMemoryBytes = 24 << 20
	minDiskBytes   = 1 << 20
	minPids        = 8
)

var (
	label   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
	tagKey  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)
	user    = regexp.MustCompile(`^([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9})(:([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9}))?$`)
	image   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,511}$`)
)

// Normalize returns a copy of the request with every default filled in, or an
// InvalidArgument fault that names the first bad field. Bearer tokens of ports
// become hashes. It changes nothing about a request that it has returned
// before.
func Normalize(req *siroccov1.CreateSandboxRequest, limits Limits) (*siroccov1.CreateSandboxRequest, error) {
	if size := proto.Size(req); size > MaxRequestBytes {
		return nil, fault.Invalid("", "the request has %d bytes; at most %d are allowed", size, MaxRequestBytes)
	}
	spec := proto.CloneOf(req)
	steps := []func(*siroccov1.CreateSandboxRequest, Limits) error{
		program, resources, times, ports, network, probe, identity, regionLoss,
	}
	for _, step := range steps {
		if err := step(spec, limits); err != nil {
			return nil, err
		}
	}
	return spec, nil
}

func program(s *siroccov1.CreateSandboxRequest, _ Limits) error {
	if s.Image == "" {
		s.Image = "base"
	}
	if !image.MatchString(s.Image) || strings.Contains(s.Image, "..") {
		return fault.Invalid("image", "%q is not the name of an image", clip(s.Image))
	}
	if err := CheckCommand("command", s.Command); err != nil {
		return err
	}
	if err := CheckEnv("env", s.Env); err != nil {
		return err
	}
	if err := CheckPath("workdir", s.Workdir, true); err != nil {
		return err
	}
	return CheckUser("user", s.User)
}

func resources(s *siroccov1.CreateSandboxRequest, limits Limits) error {
	if s.Resources == nil {
		s.Resources = &siroccov1.Resources{}
	}
	r, d, m := s.Resources, limits.Default, limits.Max
	for _, err := range []error{
		bound("resources.cpu_limit_millis", &r.CpuLimitMillis, max(d.CPULimitMillis, r.CpuRequestMillis), 10, m.CPULimitMillis),
		bound("resources.cpu_request_millis", &r.CpuRequestMillis, min(d.CPURequestMillis, r.CpuLimitMillis), 1, m.CPURequestMillis),
		bound("resources.memory_limit_bytes", &r.MemoryLimitBytes, max(d.MemoryLimitBytes, r.MemoryRequestBytes), MinMemoryBytes, m.MemoryLimitBytes),
		bound("resources.memory_request_bytes", &r.MemoryRequestBytes, min(d.MemoryRequestBytes, r.MemoryLimitBytes), 1<<20, m.MemoryRequestBytes),
		bound("resources.disk_limit_bytes", &r.DiskLimitBytes, d.DiskLimitBytes, minDiskBytes, m.DiskLimitBytes),
		bound("resources.pids_limit", &r.PidsLimit, d.PidsLimit, minPids, m.PidsLimit),
	} {
		if err != nil {
			return err
		}
	}
	if r.CpuRequestMillis > r.CpuLimitMillis {
		return fault.Invalid("resources.cpu_request_millis", "the request (%d) is above the limit (%d)", r.CpuRequestMillis, r.CpuLimitMillis)
	}
	if r.MemoryRequestBytes > r.MemoryLimitBytes {
		return fault.Invalid("resources.memory_request_bytes", "the request (%d) is above the limit (%d)", r.MemoryRequestBytes, r.MemoryLimitBytes)
	}
	return nil
}

func bound[T int32 | int64](field string, v *T, def, low, high T) error {
	if *v == 0 {
		*v = min(def, high)
	}
	if *v < low || *v > high {
		return fault.Invalid(field, "%d is out of range: %d to %d", *v, low, high)
	}
	return nil
}

func times(s *siroccov1.CreateSandboxRequest, limits Limits) error {
	life, err := duration("max_lifetime", s.MaxLifetime, limits.DefaultLifetime, time.Second, limits.MaxLifetime)
	if err != nil {
		return err
	}
	s.MaxLifetime = life
	if s.Idle.GetTimeout() != nil && s.Idle.GetTimeout().AsDuration() != 0 {
		if s.Idle.Timeout, err = duration("idle.timeout", s.Idle.Timeout, 0, time.Second, limits.MaxLifetime); err != nil {
			return err
		}
		for i, a := range s.Idle.Activity {
			if a != siroccov1.Activity_ACTIVITY_EXEC && a != siroccov1.Activity_ACTIVITY_TUNNEL {
				return fault.Invalid(fmt.Sprintf("idle.activity[%d]", i), "%d is not an activity", a)
			}
		}
		if len(s.Idle.Activity) == 0 {
			s.Idle.Activity = []siroccov1.Activity{siroccov1.Activity_ACTIVITY_EXEC, siroccov1.Activity_ACTIVITY_TUNNEL}
		}
	} else {
		s.Idle = nil
	}
	if s.StartDeadline != nil && !s.StartDeadline.IsValid() {
		return fault.Invalid("start_deadline", "it is not a time")
	}
	return nil
}

func duration(field string, d *durationpb.Duration, def, low, high time.Duration) (*durationpb.Duration, error) {
	if d == nil || d.IsValid() && d.AsDuration() == 0 {
		return durationpb.New(def), nil
	}
	if !d.IsValid() || d.AsDuration() < low || d.AsDuration() > high {
		return nil, fault.Invalid(field, "%v is out of range: %v to %v", d.AsDuration(), low, high)
	}
	return d, nil
}

func ports(s *siroccov1.CreateSandboxRequest, _ Limits) error {
	if len(s.Ports) > lifecycle.MaxPorts {
		return fault.Invalid("ports", "there are %d; at most %d are allowed", len(s.Ports), lifecycle.MaxPorts)
	}
	seen := map[uint32]bool{}
	for i, p := range s.Ports {
		if err := CheckPort(fmt.Sprintf("ports[%d]", i), p); err != nil {
			return err
		}
		if seen[p.Port] {
			return fault.Invalid(fmt.Sprintf("ports[%d].port", i), "%d is there twice", p.Port)
		}
		seen[p.Port] = true
	}
	return nil
}

func network(s *siroccov1.CreateSandboxRequest, _ Limits) error {
	if s.Network == nil {
		s.Network = &siroccov1.NetworkPolicy{}
	}
	n := s.Network
	if len(n.AllowedCidrs) > maxCIDRs {
		return fault.Invalid("network.allowed_cidrs", "there are %d; at most %d are allowed", len(n.AllowedCidrs), maxCIDRs)
	}
	for i, c := range n.AllowedCidrs {
		if _, err := ParseRange(c); err != nil {
			return fault.Invalid(fmt.Sprintf("network.allowed_cidrs[%d]", i), "%q is not an IPv4 range such as 203.0.113.0/24", clip(c))
		}
	}
	switch n.Mode {
	case siroccov1.NetworkMode_NETWORK_MODE_UNSPECIFIED:
		n.Mode = siroccov1.NetworkMode_NETWORK_MODE_OPEN
		if len(n.AllowedCidrs) > 0 {
			n.Mode = siroccov1.NetworkMode_NETWORK_MODE_ALLOWED
		}
	case siroccov1.NetworkMode_NETWORK_MODE_ALLOWED:
		if len(n.AllowedCidrs) == 0 {
			return fault.Invalid("network.allowed_cidrs", "the mode is allowed, but nothing is: name ranges, or choose blocked")
		}
	case siroccov1.NetworkMode_NETWORK_MODE_OPEN, siroccov1.NetworkMode_NETWORK_MODE_BLOCKED:
	default:
		return fault.Invalid("network.mode", "%d is not a mode", n.Mode)
	}
	if n.Mode != siroccov1.NetworkMode_NETWORK_MODE_ALLOWED && len(n.AllowedCidrs) > 0 {
		return fault.Invalid("network.allowed_cidrs", "ranges go with the mode allowed only")
	}
	return nil
}

func probe(s *siroccov1.CreateSandboxRequest, limits Limits) error {
	p := s.Readiness
	if p == nil {
		return nil
	}
	if (p.TcpPort == 0) == (len(p.Command) == 0) {
		return fault.Invalid("readiness", "want exactly one of tcp_port and command")
	}
	if p.TcpPort > 65535 {
		return fault.Invalid("readiness.tcp_port", "%d is out of range: 1 to 65535", p.TcpPort)
	}
	if err := CheckCommand("readiness.command", p.Command); err != nil {
		return err
	}
	var err error
	if p.Interval, err = duration("readiness.interval", p.Interval, 100*time.Millisecond, 10*time.Millisecond, time.Minute); err != nil {
		return err
	}
	p.Timeout, err = duration("readiness.timeout", p.Timeout, 30*time.Second, 100*time.Millisecond, limits.MaxLifetime)
	return err
}

func identity(s *siroccov1.CreateSandboxRequest, _ Limits) error {
	if s.Name != "" && !label.MatchString(s.Name) {
		return fault.Invalid("name", "%q is not a name: want 1 to 63 of a-z, 0-9 and inner hyphens", clip(s.Name))
	}
	if strings.HasPrefix(s.Name, "sb-") {
		return fault.Invalid("name", "names may not start with \"sb-\": ids do")
	}
	if err := CheckTags("tags", s.Tags); err != nil {
		return err
	}
	if err := CheckKey(s.IdempotencyKey); err != nil {
		return err
	}
	for i, r := range s.Regions {
		if !subject.ValidToken(r) {
			return fault.Invalid(fmt.Sprintf("regions[%d]", i), "%q is not the name of a region", clip(r))
		}
	}
	if w := s.Wait; w < siroccov1.Wait_WAIT_UNSPECIFIED || w > siroccov1.Wait_WAIT_RUNNING {
		return fault.Invalid("wait", "%d is not a way to wait", w)
	}
	return nil
}

// MaxReason is how long the reason of a termination may be, in bytes.
const MaxReason = 1024

// CheckReason checks why something is wanted; an empty one passes.
func CheckReason(field, reason string) error {
	if bad := badText(reason); bad != "" || len(reason) > MaxReason {
		return fault.Invalid(field, "want at most %d bytes of text", MaxReason)
	}
	return nil
}
