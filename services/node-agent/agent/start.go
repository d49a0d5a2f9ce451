package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/pkg/guest"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/network"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/durationpb"
)

// start brings the sandbox from the node's yes to ready. Of a sandbox that was
// found again before it was ready, it does what is still to do: each step may be
// repeated. On an error, what was made so far is destroyed by finish.
func (m *machine) start(ctx context.Context) error {
	began := time.Now()
	ctx, span := m.agent.tracer.Start(ctx, "agent.start", trace.WithAttributes(attribute.String("sirocco.sandbox", m.id)))
	defer span.End()
	if err := m.agent.havoc.Suffer(ctx); err != nil {
		return err
	}
	warm, err := m.furnish(ctx)
	if err != nil {
		return err
	}
	span.SetAttributes(attribute.Bool("sirocco.warm", warm))
	if err := m.probe(ctx); err != nil {
		return err
	}
	took := time.Since(began)
	if err := m.observe(ctx, lifecycle.Run{Observed: &siroccov1.Observed{
		Epoch: m.epoch, ImageDigest: m.cell.image.Source, Warm: warm,
		StartLatency: durationpb.New(took), Address: m.cell.slot.Address.String(),
	}}); err != nil {
		return err
	}
	m.mu.Lock()
	m.entry.Running = true
	m.mu.Unlock()
	m.save()
	m.active.touch(siroccov1.Activity_ACTIVITY_EXEC, time.Now())
	m.active.touch(siroccov1.Activity_ACTIVITY_TUNNEL, time.Now())
	m.agent.started(ctx, took, warm)
	m.log.InfoContext(ctx, "sandbox runs", "cell", m.cell.id, "image", m.cell.image.Source, "warm", warm, "took", took)
	return nil
}

// furnish gets the sandbox its cell and sets it up; the pools are not refilled
// meanwhile.
func (m *machine) furnish(ctx context.Context) (warm bool, err error) {
	defer m.agent.pools.begin()()
	if warm, err = m.take(ctx); err != nil {
		return false, err
	}
	return warm, m.configure(ctx)
}

// observe writes a step and says errSuperseded if the sandbox is no longer
// wanted.
func (m *machine) observe(ctx context.Context, step lifecycle.Step) error {
	sb, err := m.write(ctx, step)
	if err != nil {
		return err
	}
	if _, stop := m.judge(sb); stop {
		return errSuperseded
	}
	return nil
}

// take gets the sandbox its cell: a warm one, or else one that is built now. Only
// then does the record pass through "starting", which is written meanwhile. The
// journal says whose the cell is before anything of the tenant's gets into it.
func (m *machine) take(ctx context.Context) (warm bool, err error) {
	if m.cell != nil {
		return false, nil // it was found again
	}
	t := templateOf(m.current().GetSpec())
	b := m.agent.pools.claim(ctx, t)
	if warm = b != nil; !warm {
		bctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		told := make(chan struct{})
		go func() {
			defer close(told)
			if err := m.observe(ctx, lifecycle.Start{Epoch: m.epoch}); err != nil {
				cancel(err)
			}
		}()
		b, err = m.agent.cells.build(bctx, t, now)
		<-told
		if cause := context.Cause(bctx); cause != nil {
			if err == nil {
				cause = errors.Join(cause, m.agent.cells.destroy(ctx, b))
			}
			return false, cause
		}
		if err != nil {
			return false, err
		}
		m.agent.pools.built(t, b.took, nil)
	}
	m.mu.Lock()
	m.cell = b
	m.entry.Cell = b.entry()
	m.mu.Unlock()
	m.save()
	if warm {
		m.agent.pools.forget(b.id)
	}
	return warm, nil
}

// configure tells the supervisor who it is and starts the sandbox's command.
func (m *machine) configure(ctx context.Context) error {
	select {
	case m.agent.cells.setups <- struct{}{}:
		defer func() { <-m.agent.cells.setups }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, end := m.agent.stage(ctx, "guest")
	defer end()
	client, err := m.cell.guest(ctx)
	if err != nil {
		return fmt.Errorf("reach the supervisor: %w", err)
	}
	spec := m.current().GetSpec()
	if err := client.Configure(ctx, m.setup()); err != nil {
		return fmt.Errorf("set up the sandbox: %w", err)
	}
	if dir := spec.GetWorkdir(); dir != "" && len(spec.GetCommand()) == 0 {
		// Every process to come would be refused.
		if f, err := client.Stat(ctx, dir); err != nil || f.Type == guest.FileRegular || f.Type == guest.FileOther {
			return fmt.Errorf("set up the sandbox: %w", guest.Fail(guest.CodeWorkdirMissing, "workdir ", dir, " is not a folder"))
		}
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

// setup is what the sandbox's supervisor is told.
func (m *machine) setup() guest.Setup {
	spec, s := m.current().GetSpec(), m.cell.setup()
	s.Hostname = m.id
	s.Env = mergeEnv(s.Env, spec.GetEnv())
	s.User = cmp.Or(spec.GetUser(), s.User)
	return s
}

// setup is what a cell's supervisor can be told before it is known whose it will be.
func (b *cell) setup() guest.Setup {
	s := guest.Setup{Env: b.image.Config.Env, Workdir: b.image.Config.WorkingDir, User: b.image.Config.User}
	if b.slot.Address.IsValid() && !b.slot.Address.IsUnspecified() {
		s.Address = b.slot.Address.String()
	}
	if b.slot.Policy.Mode != network.Blocked {
		for _, d := range b.slot.DNS {
			s.DNS = append(s.DNS, d.String())
		}
	}
	return s
}

// mergeEnv returns the image's variables with the request's over them.
func mergeEnv(base []string, over map[string]string) []string {
	out := slices.Clone(base)
	for _, name := range slices.Sorted(maps.Keys(over)) {
		out = append(out, name+"="+over[name])
	}
	return out
}
