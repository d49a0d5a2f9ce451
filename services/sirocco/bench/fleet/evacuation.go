package fleet

import (
	"errors"
	"fmt"
	"time"

	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"github.com/spf13/pflag"
)

// regionNames are the names that regions get, in this order; the first is evacuated.
var regionNames = []string{"eu", "us", "ap", "sa", "af", "me", "oc", "na"}

// Evacuation measures what clients see while a region is evacuated.
type Evacuation struct {
	// Program is the sirocco command.
	Program string
	// Name is that of the report and of its files.
	Name string
	// Sim: sandboxes are simulated. There is nothing else.
	Sim bool
	// Regions is how many regions there are, Nodes how many nodes all of them have,
	// Schedulers how many schedulers each has.
	Regions, Nodes, Schedulers int
	// Live is how many sandboxes live in all regions, evenly, while Churn are made and
	// as many ended each second, Gets asked for, and Execs run in some of them.
	Live               int
	Churn, Gets, Execs float64
	// Over is how long the evacuation is to take, AtOnce how many moves may be under way
	// (0: the platform's default). Before and After is for how long clients are watched
	// before the order and behind its end.
	Over          time.Duration
	AtOnce        int32
	Before, After time.Duration
	// Workers is how many creates are under way while sandboxes are filled in.
	Workers int
	// Retained and EventBytes are as for Config.
	Retained   int
	EventBytes int64
	Keep       bool
	Set        []string
	Progress   *bench.Progress
}

// Flags adds the flags, with their defaults.
func (c *Evacuation) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Name, "name", "evacuate", "`name` of the report and of its files")
	fs.BoolVar(&c.Sim, "sim", true, "with simulated sandboxes; there is no other way (for real ones: sirocco bench migrate)")
	fs.IntVar(&c.Regions, "regions", 3, "`number` of regions; the first is evacuated")
	fs.IntVar(&c.Nodes, "nodes", 300, "`number` of simulated nodes, of all regions together")
	fs.IntVar(&c.Schedulers, "schedulers", 1, "`number` of schedulers of each region")
	fs.IntVar(&c.Live, "live", 30000, "`number` of sandboxes that live, of all regions together")
	fs.Float64Var(&c.Churn, "churn", 10, "creates, and as many ends, a second")
	fs.Float64Var(&c.Gets, "gets", 20, "sandboxes asked for a second")
	fs.Float64Var(&c.Execs, "execs", 5, "commands run a second, through the relays")
	fs.DurationVar(&c.Over, "over", time.Minute, "over which time the region is evacuated")
	fs.Int32Var(&c.AtOnce, "at-once", 0, "`number` of moves under way at most (default: the platform's)")
	fs.DurationVar(&c.Before, "before", 20*time.Second, "for how long clients are watched before the order")
	fs.DurationVar(&c.After, "after", 20*time.Second, "for how long they are watched behind its end")
	fs.IntVar(&c.Workers, "workers", 32, "`number` of creates under way while the regions are filled")
	fs.IntVar(&c.Retained, "retained", 20000, "how many records of ended sandboxes a region keeps at most")
	fs.Int64Var(&c.EventBytes, "event-bytes", 256<<20, "how much of its events a region keeps, in `bytes`")
	fs.BoolVar(&c.Keep, "keep", false, "leave the folder with logs and streams behind, and say where")
	fs.StringArrayVar(&c.Set, "set", nil, "`service.flag=value`, as for up; may be repeated")
}

// Validate says in one sentence what can't be measured.
func (c *Evacuation) Validate() error {
	switch {
	case !c.Sim:
		return errors.New("only simulated sandboxes are measured here: without --sim=false, or with `sirocco bench migrate` for real ones")
	case c.Regions < 2 || c.Regions > len(regionNames):
		return fmt.Errorf("--regions %d is not usable: want 2 to %d", c.Regions, len(regionNames))
	case c.Nodes < c.Regions || c.Nodes > 1000:
		return fmt.Errorf("--nodes %d is not usable: want one for each region at least, and 1000 at most", c.Nodes)
	case c.Live < c.Regions || c.Workers < 1 || c.Schedulers < 1:
		return errors.New("--live, --workers and --schedulers are too low")
	case c.Churn <= 0 || c.Gets <= 0 || c.Execs <= 0:
		return errors.New("--churn, --gets and --execs want to be above 0: without clients nobody sees what they see")
	case c.Over < 0 || c.Before < 0 || c.After < 0:
		return errors.New("--over, --before and --after may not be negative")
	}
	return nil
}
