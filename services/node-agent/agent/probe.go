package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/guest"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// probeError says that a readiness probe did not pass in time.
type probeError struct {
	last          error
	cell, sandbox string
}

// Error names the sandbox where the runtime names the cell, which its tenant does
// not know.
func (e *probeError) Error() string {
	return "readiness probe: " + strings.ReplaceAll(e.last.Error(), e.cell, e.sandbox)
}

// mainEndedError says that the command ended before the sandbox was ready.
type mainEndedError struct{ exec *guest.Exec }

func (e *mainEndedError) Error() string { return "the command ended before the sandbox was ready" }

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
		case <-m.cell.sandbox.Done():
			return fmt.Errorf("the sandbox ended before it was ready: %w", m.cell.brokenError())
		case <-pctx.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &probeError{last, m.cell.id, m.id}
		case <-time.After(p.GetInterval().AsDuration()):
		}
		// A command that has ended will not become ready any more.
		if client, err := m.cell.guest(pctx); err == nil && len(m.current().GetSpec().GetCommand()) > 0 {
			if x, err := client.Wait(pctx, guest.MainExec, 0); err == nil && x.End != nil {
				m.mu.Lock()
				m.mainDone = &x
				m.mu.Unlock()
				return &mainEndedError{&x}
			}
		}
	}
}

func (m *machine) probeOnce(ctx context.Context, p *siroccov1.Probe, n int) error {
	if port := p.GetTcpPort(); port != 0 {
		conn, err := m.cell.sandbox.Dial(ctx, uint16(port)) //nolint:gosec // admission has checked the range
		if err != nil {
			return fmt.Errorf("port %d: %w", port, err)
		}
		return conn.Close()
	}
	client, err := m.cell.guest(ctx)
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
