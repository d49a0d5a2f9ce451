package regions

import (
	"context"
	"time"

	"github.com/sirocco-run/sirocco/pkg/weight"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// startTimeout is what a start that fails counts for at least.
const startTimeout = 10 * time.Second

// seen is what is known of one region.
type seen struct {
	// report is the newest that the region made, nil before the first; heard is when
	// it came, by the clock of this machine: regions' clocks may differ.
	report *siroccov1.RegionReport
	heard  time.Time

	creates, probes weight.Track
	// answers are those of the region's nodes between its last two reports, perSecond
	// its creates.
	answers   weight.Answers
	perSecond float64
}

// hear takes in a report. One that is known already is no sign of life. What went wrong
// while the region was dead is over when it is heard of again: only what is usual there
// is remembered.
func (s *seen) hear(r *siroccov1.RegionReport, now time.Time, deadAfter time.Duration) {
	last := s.report
	if last != nil && !r.GetAt().AsTime().After(last.GetAt().AsTime()) {
		return
	}
	if last != nil && now.Sub(s.heard) > deadAfter {
		s.creates = weight.Track{Baseline: s.creates.Baseline}
		s.probes = weight.Track{Baseline: s.probes.Baseline}
	}
	s.report, s.heard = r, now
	if last == nil {
		return // what it counted may be as old as its schedulers
	}
	starts, failures := grown(last.GetStarts(), r.GetStarts()), grown(last.GetStartFailures(), r.GetStartFailures())
	s.creates.Saw(now, weight.Report{
		Succeeded: starts, Failed: failures, Latency: r.GetStartLatency().AsDuration(), Timeout: startTimeout,
	})
	s.answers = weight.Answers{Asked: grown(last.GetAsks(), r.GetAsks()), Answered: grown(last.GetAnswers(), r.GetAnswers())}
	if passed := r.GetAt().AsTime().Sub(last.GetAt().AsTime()).Seconds(); passed > 0 {
		s.perSecond = float64(starts) / passed
	}
}

// grown is by how much a count has grown; one that begins again has grown by nothing.
func grown(before, now int64) int { return int(max(now-before, 0)) }

// look asks another region how it is, and tries its relay.
func (s *seen) look(ctx context.Context, c *Controller, region string, now time.Time) {
	p, err := c.env.Peers.Get(region)
	if err == nil && p.Alive() {
		var r *siroccov1.RegionReport
		if r, err = readReport(ctx, p.JS, region); err == nil {
			s.hear(r, now, c.cfg.DeadAfter)
		}
	}
	if err != nil {
		c.log.Debug("a region says nothing", "peer", region, "err", err)
	}
	if s.report.GetRelay() == "" {
		return
	}
	began := time.Now()
	probe := weight.Report{Timeout: askTimeout}
	if err := c.probe.try(ctx, s.report.GetRelay(), s.report.GetRelayProbeAddress()); err != nil {
		c.log.Debug("a relay did not answer", "peer", region, "err", err)
		probe.Failed = 1
	} else {
		probe.Succeeded, probe.Latency = 1, time.Since(began)
	}
	s.probes.Saw(now, probe)
}

// input is what the weights need to know of the region.
func (s *seen) input(name string, cfg Config, now time.Time) (weight.Region, weight.Health) {
	r := s.report
	signals := weight.Signals{
		Answers: s.answers, Creates: s.creates.Evidence(now), Probes: s.probes.Evidence(now),
		Headroom: weight.Headroom{Free: float64(r.GetFreeSandboxes()), Capacity: float64(r.GetCapacitySandboxes())},
		Bus:      weight.Bus{Seen: r.GetBusLatency() != nil, Lag: r.GetBusLatency().AsDuration()},
	}
	health := weight.Judge(signals)
	return weight.Region{
		Name: name, Dead: r == nil || now.Sub(s.heard) > cfg.DeadAfter,
		Score: health.Score, Known: health.Known,
		Capacity: float64(r.GetCapacitySandboxes()), Live: float64(r.GetLiveSandboxes()), Creates: s.perSecond,
		Free: float64(r.GetFreeSandboxes()), Warm: float64(r.GetWarmSandboxes()),
		StartRate: cfg.NodeStartRate * float64(r.GetReadyNodes()),
	}, health
}
