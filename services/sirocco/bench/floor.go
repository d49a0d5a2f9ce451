package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/pkg/image"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/floor"
	"github.com/sirocco-run/sirocco/services/node-agent/agent"
	"github.com/spf13/pflag"
)

// FloorRuns is how many sandboxes the floor is measured with.
const FloorRuns = 15

// Floor is what a sandbox of bare gVisor costs, in milliseconds: the medians.
type Floor struct {
	N       int     `json:"n"`
	New     float64 `json:"create"`
	Start   float64 `json:"start"`
	Exec    float64 `json:"first_command"`
	TTI     float64 `json:"tti"`
	Destroy float64 `json:"destroy"`
	CPU     float64 `json:"cpu"`
}

// Programs are what a sandbox is made of on this machine.
type Programs struct{ Runsc, Supervisor, Base string }

// OurPrograms are those beside this program, where `make build` puts them.
func OurPrograms() Programs {
	var cfg agent.Config
	cfg.Flags(pflag.NewFlagSet("", pflag.ContinueOnError))
	return Programs{cfg.Runsc, cfg.Supervisor, cfg.Base}
}

// MeasureFloor makes n sandboxes of bare gVisor with the base image, one after
// the other, runs a command in each and ends them. It needs root. Nothing else
// of this program should run meanwhile.
func MeasureFloor(ctx context.Context, p Programs, n int) (*Floor, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("bare gVisor needs root")
	}
	erofs, done, err := p.image(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	cycles := make([]floor.Cycle, 0, n)
	for range n {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		c, err := floor.Measure(floor.Config{
			Runsc: p.Runsc, EROFS: erofs, Args: []string{"/bin/sleep", "600"}, Command: []string{"/bin/echo", "ready"},
		})
		if err != nil {
			return nil, err
		}
		cycles = append(cycles, c)
	}
	return summarizeFloor(cycles), nil
}

// image builds the base image in a folder of its own, which done removes.
func (p Programs) image(ctx context.Context) (erofs string, done func(), err error) {
	dir, err := os.MkdirTemp("", "sirocco-bench-")
	if err != nil {
		return "", nil, fmt.Errorf("build the base image: %w", err)
	}
	done = func() { _ = os.RemoveAll(dir) }
	store, err := image.New(image.Options{Dir: dir, Supervisor: p.Supervisor, Base: p.Base})
	if err != nil {
		done()
		return "", nil, fmt.Errorf("build the base image: %w", err)
	}
	done = func() { _, _ = store.Close(), os.RemoveAll(dir) }
	img, err := store.Resolve(ctx, image.Base)
	if err != nil {
		done()
		return "", nil, fmt.Errorf("build the base image: %w", err)
	}
	return img.Rootfs.EROFS, done, nil
}

func summarizeFloor(cycles []floor.Cycle) *Floor {
	median := func(of func(floor.Cycle) time.Duration) float64 {
		var all []Sample
		for c := range slices.Values(cycles) {
			all = append(all, Sample{Took: of(c)})
		}
		return Distribute(all).P50
	}
	return &Floor{
		N:       len(cycles),
		New:     median(func(c floor.Cycle) time.Duration { return c.New }),
		Start:   median(func(c floor.Cycle) time.Duration { return c.Start }),
		Exec:    median(func(c floor.Cycle) time.Duration { return c.Exec }),
		TTI:     median(floor.Cycle.TTI),
		Destroy: median(func(c floor.Cycle) time.Duration { return c.Destroy }),
		CPU:     median(func(c floor.Cycle) time.Duration { return c.CPU }),
	}
}

// The figures of a floor, 0 for one that was not measured.
func (f *Floor) tti() float64 {
	if f == nil {
		return 0
	}
	return f.TTI
}

func (f *Floor) create() float64 {
	if f == nil {
		return 0
	}
	return f.New + f.Start
}

func (f *Floor) destroy() float64 {
	if f == nil {
		return 0
	}
	return f.Destroy
}

func (f *Floor) cpu() float64 {
	if f == nil {
		return 0
	}
	return f.CPU
}
