// Package bench measures the platform from outside, through its public API.
package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"google.golang.org/protobuf/proto"
)

// Mode is how creates follow each other.
type Mode string

// The modes.
const (
	// Sequential: the next one begins when the one before has ended.
	Sequential Mode = "sequential"
	// Staggered: one begins every Config.Stagger.
	Staggered Mode = "staggered"
	// Burst: all begin at once.
	Burst Mode = "burst"
)

// DefaultStagger is the distance of staggered creates.
const DefaultStagger = 200 * time.Millisecond

// Config of a measurement.
type Config struct {
	Mode Mode
	// N is how many sandboxes.
	N       int
	Stagger time.Duration
	// Request is what each is made from.
	Request *siroccov1.CreateSandboxRequest
	// Command is the first command; default: echo ready.
	Command []string
	// Timeout bounds each sandbox; default 1 min.
	Timeout time.Duration
	// Progress is told how many have ended and failed; nil for nobody.
	Progress func(done, failures int)
}

// Sample is one sandbox.
type Sample struct {
	// Create is the time until the create was answered, TTI until the first
	// command had answered too.
	Create, TTI time.Duration
	Err         error
}

// Result of a measurement. Times are in milliseconds.
type Result struct {
	Mode      Mode    `json:"mode"`
	N         int     `json:"n"`
	Succeeded int     `json:"succeeded"`
	Seconds   float64 `json:"seconds"`
	// PerSecond is sandboxes with an answer, by the whole time.
	PerSecond float64      `json:"per_second"`
	TTI       Distribution `json:"tti_ms"`
	Create    Distribution `json:"create_ms"`
	// Failures counts errors by code, Example is the first.
	Failures map[string]int `json:"failures,omitempty"`
	Example  string         `json:"example,omitempty"`
}

// Distribution of times in milliseconds, by nearest rank.
type Distribution struct {
	Min  float64 `json:"min"`
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
	Mean float64 `json:"mean"`
}

// TTI measures the time to interactive: from the request until the first
// command of a new sandbox has answered. Every sandbox is ended again, outside
// the measured time. The error is that of a configuration or of ctx; failures
// of sandboxes are in the result.
func TTI(ctx context.Context, client *sirocco.Client, cfg Config) (Result, error) {
	if cfg.N < 1 {
		return Result{}, errors.New("want at least one sandbox")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	if cfg.Stagger == 0 {
		cfg.Stagger = DefaultStagger
	}
	if len(cfg.Command) == 0 {
		cfg.Command = []string{"echo", "ready"}
	}
	var gap func(i int) bool
	began := time.Now()
	// Ends are outside of what is measured; only Sequential waits for each.
	var wg, ends sync.WaitGroup
	defer ends.Wait()
	switch cfg.Mode {
	case Sequential:
		gap = func(int) bool {
			wg.Wait()
			ends.Wait()
			return ctx.Err() == nil
		}
	case Staggered:
		gap = func(i int) bool { return until(ctx, began.Add(time.Duration(i)*cfg.Stagger)) }
	case Burst:
		gap = func(int) bool { return ctx.Err() == nil }
	default:
		return Result{}, fmt.Errorf("%q is no mode: want %s, %s or %s", cfg.Mode, Sequential, Staggered, Burst)
	}
	samples := make([]Sample, cfg.N)
	var mu sync.Mutex
	done, failures := 0, 0
	for i := range samples {
		if i > 0 && !gap(i) {
			break
		}
		wg.Go(func() {
			s := measure(ctx, client, cfg, &ends)
			mu.Lock()
			defer mu.Unlock()
			samples[i] = s
			done++
			if s.Err != nil {
				failures++
			}
			if cfg.Progress != nil {
				cfg.Progress(done, failures)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return Result{}, ctx.Err()
	}
	return Summarize(cfg.Mode, samples, time.Since(began)), nil
}

func until(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// measure makes one sandbox and runs its first command.
func measure(ctx context.Context, client *sirocco.Client, cfg Config, ends *sync.WaitGroup) (s Sample) {
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	began := time.Now()
	sandbox, err := client.Create(ctx, proto.CloneOf(cfg.Request))
	s.Create = time.Since(began)
	if err != nil {
		s.Err = err
		return s
	}
	defer ends.Go(func() {
		ectx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.Timeout)
		defer cancel()
		// One that stays ends with its lifetime.
		_, _ = sandbox.Terminate(ectx, "measured")
	})
	if end := sandbox.Record.GetEnd(); end != nil {
		s.Err = &sirocco.Error{Code: sirocco.Code(strings.ToLower(strings.TrimPrefix(end.GetCause().String(), "CAUSE_"))), Message: end.GetMessage()}
		return s
	}
	var out bytes.Buffer
	end, err := sandbox.Run(ctx, sirocco.Command{Args: cfg.Command, Stdout: &out})
	s.TTI = time.Since(began)
	switch {
	case err != nil:
		s.Err = err
	case end.GetExitCode() != 0:
		s.Err = fmt.Errorf("the command exited with %d", end.GetExitCode())
	case out.Len() == 0:
		s.Err = errors.New("the command answered nothing")
	}
	return s
}

// Summarize makes a result of samples that took a while together.
func Summarize(mode Mode, samples []Sample, took time.Duration) Result {
	r := Result{Mode: mode, N: len(samples), Seconds: round(took.Seconds())}
	var tti, create []time.Duration
	for _, s := range samples {
		if s.Err != nil {
			if r.Failures == nil {
				r.Failures, r.Example = map[string]int{}, s.Err.Error()
			}
			r.Failures[string(sirocco.CodeOf(s.Err))]++
			continue
		}
		tti, create = append(tti, s.TTI), append(create, s.Create)
	}
	r.Succeeded = len(tti)
	r.TTI, r.Create = Distribute(tti), Distribute(create)
	if took > 0 {
		r.PerSecond = round(float64(r.Succeeded) / took.Seconds())
	}
	return r
}

// Distribute returns the distribution of times; all zero for none.
func Distribute(times []time.Duration) Distribution {
	if len(times) == 0 {
		return Distribution{}
	}
	times = slices.Sorted(slices.Values(times))
	var sum time.Duration
	for _, t := range times {
		sum += t
	}
	rank := func(p float64) float64 {
		return millis(times[max(int(math.Ceil(p*float64(len(times))))-1, 0)])
	}
	return Distribution{
		Min: millis(times[0]), P50: rank(.50), P95: rank(.95), P99: rank(.99), Max: millis(times[len(times)-1]),
		Mean: millis(sum / time.Duration(len(times))),
	}
}

func millis(d time.Duration) float64 { return round(float64(d) / float64(time.Millisecond)) }

// round keeps two digits behind the point.
func round(f float64) float64 { return math.Round(f*100) / 100 }
