package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guest"
	"github.com/sirocco-run/sirocco/pkg/image"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/network"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/durationpb"
)

// bootTimeout bounds the time from the creation of a sandbox until its
// supervisor answers.
const bootTimeout = 20 * time.Second

// probeError says that a readiness probe did not pass in time.
type probeError struct{ last error }

func (e *probeError) Error() string { return fmt.Sprintf("readiness probe: %v", e.last) }

// start brings the sandbox from the node's yes to ready, writing the record on
// the way. Of a sandbox that was found again before it was ready, it does what is
// still to do: each step may be repeated. On an error, what was made so far is
// destroyed by finish.
func (m *machine) start(ctx context.Context) error {
	began := time.Now()
	ctx, span := m.agent.tracer.Start(ctx, "agent.start", trace.WithAttributes(attribute.String("sirocco.sandbox", m.id)))
	defer span.End()
	sb, err := m.write(ctx, lifecycle.Start{Epoch: m.epoch})
	if err != nil {
		return err
	}
	if _, stop := m.judge(sb); stop {
		return errSuperseded
	}
	img, slot, err := m.prepare(ctx)
	if err != nil {
		return err
	}
	if err := m.bring(ctx, img, slot); err != nil {
		return err
	}
	if err := m.probe(ctx); err != nil {
		return err
	}
	took := time.Since(began)
	sb, err = m.write(ctx, lifecycle.Run{Observed: &siroccov1.Observed{
		Epoch: m.epoch, ImageDigest: img.Source, StartLatency: durationpb.New(took), Address: slot.Address.String(),
	}})
	if err != nil {
		return err
	}
	if _, stop := m.judge(sb); stop {
		return errSuperseded
	}
	m.mu.Lock()
	m.entry.Running = true
	m.mu.Unlock()
	m.save()
	m.active.touch(siroccov1.Activity_ACTIVITY_EXEC, time.Now())
	m.active.touch(siroccov1.Activity_ACTIVITY_TUNNEL, time.Now())
	m.agent.started(ctx, took)
	m.log.InfoContext(ctx, "sandbox runs", "image", img.Source, "took", took)
	return nil
}

// prepare gets the image and the network, at the same time.
func (m *machine) prepare(ctx context.Context) (image.Image, *network.Slot, error) {
	spec := m.current().GetSpec()
	type netResult struct {
		slot *network.Slot
		err  error
	}
	got := make(chan netResult, 1)
	go func() {
		nctx, end := m.agent.stage(ctx, "network")
		defer end()
		if m.slot != nil {
			got <- netResult{slot: m.slot}
			return
		}
		slot, err := m.agent.parts.slots.Acquire(nctx, m.id, policyOf(spec.GetNetwork()))
		got <- netResult{slot, err}
	}()
	ictx, end := m.agent.stage(ctx, "image")
	img, err := m.agent.imports.resolve(ictx, spec.GetImage())
	end()
	net := <-got
	if err != nil {
		return img, nil, err
	}
	if net.err != nil {
		return img, nil, fmt.Errorf("prepare the network: %w", net.err)
	}
	free, err := m.agent.parts.images.Acquire(img.Digest)
	if err != nil {
		return img, nil, err
	}
	m.mu.Lock()
	before := m.free
	m.free = free
	m.entry.Image = img.Digest
	m.mu.Unlock()
	if before != nil {
		before()
	}
	return img, net.slot, nil
}

// bring creates the machine and starts its command, a few machines at a time:
// more would only be slower together.
func (m *machine) bring(ctx context.Context, img image.Image, slot *network.Slot) error {
	_, end := m.agent.stage(ctx, "turn")
	select {
	case m.agent.turns <- struct{}{}:
		end()
	case <-ctx.Done():
		end()
		return ctx.Err()
	}
	defer func() { <-m.agent.turns }()
	if err := m.create(ctx, img, slot); err != nil {
		return err
	}
	return m.configure(ctx, img, slot)
}

// create makes the machine. The journal comes first: whatever is made must be
// found again.
func (m *machine) create(ctx context.Context, img image.Image, slot *network.Slot) error {
	if m.sandbox != nil {
		return nil // it was found again
	}
	ctx, end := m.agent.stage(ctx, "create")
	defer end()
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return fmt.Errorf("make the supervisor's secret: %w", err)
	}
	m.mu.Lock()
	m.entry.Secret = []byte(hex.EncodeToString(secret))
	m.mu.Unlock()
	m.save()
	r := m.current().GetSpec().GetResources()
	spec := runtime.Spec{
		ID: m.id, Rootfs: img.Rootfs, Hostname: m.id, NetNS: slot.NetNS,
		Args: []string{image.SupervisorPath},
		Env:  []string{guest.SecretEnv + "=" + string(m.entry.Secret)},
		Resources: runtime.Resources{
			CPUMillis: int64(r.GetCpuLimitMillis()), MemoryBytes: r.GetMemoryLimitBytes(),
			DiskBytes: r.GetDiskLimitBytes(), Pids: int64(r.GetPidsLimit()),
		},
	}
	sandbox, err := m.agent.parts.runtime.Create(ctx, spec)
	if err != nil {
		return fmt.Errorf("create the sandbox: %w", err)
	}
	m.mu.Lock()
	m.sandbox = sandbox
	m.mu.Unlock()
	return nil
}

// configure tells the supervisor who it is and starts the sandbox's command.
func (m *machine) configure(ctx context.Context, img image.Image, slot *network.Slot) error {
	ctx, end := m.agent.stage(ctx, "guest")
	defer end()
	bctx, cancel := context.WithTimeout(ctx, bootTimeout)
	client, err := m.boot(bctx)
	cancel()
	if err != nil {
		return err
	}
	spec := m.current().GetSpec()
	setup := guest.Setup{
		Hostname: m.id, Env: mergeEnv(img.Config.Env, spec.GetEnv()),
		Workdir: img.Config.WorkingDir, User: cmp.Or(spec.GetUser(), img.Config.User),
	}
	if slot.Address.IsValid() && !slot.Address.IsUnspecified() {
		setup.Address = slot.Address.String()
	}
	if slot.Policy.Mode != network.Blocked {
		for _, d := range slot.DNS {
			setup.DNS = append(setup.DNS, d.String())
		}
	}
	if err := client.Configure(ctx, setup); err != nil {
		return fmt.Errorf("set up the sandbox: %w", err)
	}
	if len(spec.GetCommand()) > 0 {
		ctx, end := m.agent.stage(ctx, "command")
		defer end()
		if _, err := client.Start(ctx, guest.StartRequest{ID: guest.MainExec, Command: spec.GetCommand(), Workdir: spec.GetWorkdir()}); err != nil {
			return fmt.Errorf("start the command: %w", err)
		}
	}
	return nil
}

// boot connects to a supervisor that is only just starting.
func (m *machine) boot(ctx context.Context) (*guest.Client, error) {
	wait := 2 * time.Millisecond
	for {
		client, err := m.guest(ctx)
		if err == nil {
			return client, nil
		}
		select {
		case <-m.sandbox.Done():
			return nil, fmt.Errorf("the supervisor ended while starting: %+v", m.sandbox.Exit())
		case <-ctx.Done():
			return nil, fmt.Errorf("reach the supervisor: %w", errors.Join(ctx.Err(), err))
		case <-time.After(wait):
			wait = min(2*wait, 50*time.Millisecond)
		}
	}
}

// guest returns the connection to the supervisor, made anew if there is none.
// Callers share one dial.
func (m *machine) guest(ctx context.Context) (*guest.Client, error) {
	for {
		m.mu.Lock()
		if m.sandbox == nil {
			m.mu.Unlock()
			return nil, fault.New(fault.Unavailable, "the sandbox is still starting")
		}
		if m.client != nil {
			select {
			case <-m.client.Done():
				m.client = nil
			default:
				c := m.client
				m.mu.Unlock()
				return c, nil
			}
		}
		if wait := m.dialing; wait != nil {
			m.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		done := make(chan struct{})
		m.dialing = done
		sandbox, secret := m.sandbox, m.entry.Secret
		m.mu.Unlock()

		client, err := guest.Dial(ctx, func(ctx context.Context) (net.Conn, error) {
			return sandbox.Dial(ctx, runtime.GuestPort)
		}, secret)
		m.mu.Lock()
		m.dialing = nil
		if err == nil {
			m.client = client
		}
		m.mu.Unlock()
		close(done)
		return client, err
	}
}

// probe waits until the readiness probe passes.
func (m *machine) probe(ctx context.Context) error {
	p := m.current().GetSpec().GetReadiness()
	if p == nil {
		return nil
	}
	ctx, end := m.agent.stage(ctx, "probe")
	defer end()
	pctx, cancel := context.WithTimeout(ctx, p.GetTimeout().AsDuration())
	defer cancel()
	var last error
	for n := 0; ; n++ {
		err := m.probeOnce(pctx, p, n)
		if err == nil {
			return nil
		}
		// Why it failed before its time was over says more than that it is.
		if last == nil || pctx.Err() == nil {
			last = err
		}
		select {
		case <-m.sandbox.Done():
			return fmt.Errorf("the sandbox ended before it was ready: %+v", m.sandbox.Exit())
		case <-pctx.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &probeError{last}
		case <-time.After(p.GetInterval().AsDuration()):
		}
		// A command that has ended will not become ready any more.
		if client, err := m.guest(pctx); err == nil && len(m.current().GetSpec().GetCommand()) > 0 {
			if x, err := client.Wait(pctx, guest.MainExec, 0); err == nil && x.End != nil {
				m.mu.Lock()
				m.mainDone = &x
				m.mu.Unlock()
				return &mainEndedError{&x}
			}
		}
	}
}

// mainEndedError says that the command ended before the sandbox was ready.
type mainEndedError struct{ exec *guest.Exec }

func (e *mainEndedError) Error() string { return "the command ended before the sandbox was ready" }

func (m *machine) probeOnce(ctx context.Context, p *siroccov1.Probe, n int) error {
	if port := p.GetTcpPort(); port != 0 {
		conn, err := m.sandbox.Dial(ctx, uint16(port)) //nolint:gosec // admission has checked the range
		if err != nil {
			return fmt.Errorf("port %d: %w", port, err)
		}
		return conn.Close()
	}
	client, err := m.guest(ctx)
	if err != nil {
		return err
	}
	id := fmt.Sprintf("readiness-%d", n)
	if _, err := client.Start(ctx, guest.StartRequest{ID: id, Command: p.GetCommand(), Workdir: m.current().GetSpec().GetWorkdir(), Timeout: time.Minute}); err != nil {
		return err
	}
	x, err := client.Wait(ctx, id, time.Minute)
	switch {
	case err != nil:
		return err
	case x.End == nil:
		return errors.New("the command still runs")
	case x.End.Code != 0:
		return fmt.Errorf("the command exited with %d", x.End.Code)
	}
	return nil
}

// mergeEnv returns the image's variables with the request's over them.
func mergeEnv(base []string, over map[string]string) []string {
	out := slices.Clone(base)
	for _, name := range slices.Sorted(maps.Keys(over)) {
		out = append(out, name+"="+over[name])
	}
	return out
}
