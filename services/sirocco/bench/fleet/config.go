// Package fleet measures the control plane: the real services and the real bus
// (file storage, sync always) with hundreds of simulated nodes.
//
// The control plane is one process, the nodes another, and what makes the load a
// third, so that the memory and the processor time of each are known apart. All
// three are this program. The load comes over the bus, through the public asks
// (`sirocco.api.<tenant>.sandbox.…`).
package fleet

import (
	"errors"
	"fmt"
	"time"

	"github.com/sirocco-run/sirocco/services/sirocco/bench"
	"github.com/spf13/pflag"
)

// Config of a measurement.
type Config struct {
	// Program is the sirocco command.
	Program string
	// Name is that of the report and of its files.
	Name string
	// Nodes is how many nodes are simulated, Schedulers how many schedulers share
	// the commands.
	Nodes, Schedulers int
	// Live is how many sandboxes live while Churn are made and as many ended each
	// second, for Duration. With no Live this part is left out.
	Live     int
	Churn    float64
	Duration time.Duration
	// Lifecycles is for how long whole lifecycles are made as fast as they go;
	// zero leaves this part out.
	Lifecycles time.Duration
	// Weekend is how many sandboxes are made and ended as fast as it goes; zero
	// leaves this part out.
	Weekend int
	// Surge lets the live count grow to Peak, from a third of it, within SurgeTime.
	Surge     bool
	Peak      int
	SurgeTime time.Duration
	// Restart ends all services while Live sandboxes live, and starts them again.
	Restart bool
	// Workers is how many lifecycles are under way at once where they go as fast
	// as they can.
	Workers int
	// Retained and EventBytes bound what is kept of ended sandboxes; see
	// `reaper --retained` and `api --event-bytes`.
	Retained   int
	EventBytes int64
	// Keep leaves the folder with logs and streams behind.
	Keep bool
	// Set is given to the services as `sirocco up --set` takes it.
	Set []string
	// Progress shows how far it is.
	Progress *bench.Progress
}

// Flags adds the flags, with their defaults.
func (c *Config) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Name, "name", "fleet", "`name` of the report and of its files")
	fs.IntVar(&c.Nodes, "nodes", 300, "`number` of simulated nodes")
	fs.IntVar(&c.Schedulers, "schedulers", 1, "`number` of schedulers")
	fs.IntVar(&c.Live, "live", 30000, "`number` of sandboxes that live during the churn; 0 leaves it out")
	fs.Float64Var(&c.Churn, "churn", 10, "creates, and as many ends, a second")
	fs.DurationVar(&c.Duration, "duration", 10*time.Minute, "how long the churn lasts")
	fs.DurationVar(&c.Lifecycles, "lifecycles", 0, "first make whole lifecycles as fast as they go, for this long (30s without a value)")
	fs.Lookup("lifecycles").NoOptDefVal = "30s"
	fs.IntVar(&c.Weekend, "weekend", 0, "first make this `number` of sandboxes as fast as it goes (1000000 without a value)")
	fs.Lookup("weekend").NoOptDefVal = "1000000"
	fs.BoolVar(&c.Surge, "surge", false, "after the churn, let the live count grow to --peak, from a third of it")
	fs.IntVar(&c.Peak, "peak", 20000, "`number` of live sandboxes at the peak of the surge")
	fs.DurationVar(&c.SurgeTime, "surge-time", 10*time.Minute, "within what time the surge reaches its peak")
	fs.BoolVar(&c.Restart, "restart", false, "after the churn, start all services again while the sandboxes live")
	fs.IntVar(&c.Workers, "workers", 128, "`number` of lifecycles under way at once where they go as fast as they can")
	fs.IntVar(&c.Retained, "retained", 20000, "how many records of ended sandboxes are kept at most")
	fs.Int64Var(&c.EventBytes, "event-bytes", 256<<20, "how much of the events is kept, in `bytes`")
	fs.BoolVar(&c.Keep, "keep", false, "leave the folder with logs and streams behind, and say where")
	fs.StringArrayVar(&c.Set, "set", nil, "`service.flag=value`, as for up; may be repeated")
}

// Validate says in one sentence what can't be measured.
func (c *Config) Validate() error {
	switch {
	case c.Nodes < 1 || c.Nodes > 1000:
		return fmt.Errorf("--nodes %d is not usable: want 1 to 1000", c.Nodes)
	case c.Live < 0 || c.Weekend < 0 || c.Workers < 1 || c.Churn < 0 || c.Duration < 0 || c.Lifecycles < 0:
		return errors.New("--live, --weekend, --workers, --churn, --duration and --lifecycles may not be negative")
	case c.Restart && c.Live == 0:
		return errors.New("--restart wants sandboxes that live: give --live")
	case c.Surge && c.Peak < 3:
		return errors.New("--peak is too low for a surge")
	}
	return nil
}
