package simulation

import (
	"slices"
	"time"

	"github.com/sirocco-run/sirocco/pkg/move"
	nodev1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/node/v1"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// machine is one node: what lives on it as long as it has power, and its agent.
type machine struct {
	w *world
	// name is unique; node is the name in its region, which other regions use too.
	name, node string
	region     *region
	agent      *agent
	capacity   int
	// dead: it has lost power.
	dead bool
	// gone: for good.
	gone bool
	// since is when its agent was last seen to be down.
	since   time.Duration
	copies  map[string]*execution
	journal map[string]*entry
}

// execution is a sandbox on a machine, by its id.
type execution struct {
	id    string
	epoch uint64
	on    string
	// runs: it is not paused.
	runs bool
	// ready: it is the sandbox, and not one that is still made or has never run.
	ready bool
	// memory is all that was written into it.
	memory []int
}

// entry is what the agent's journal says of a sandbox. It lives as long as the machine.
type entry struct {
	id     string
	epoch  uint64
	record *siroccov1.Sandbox
	// ready: it has run. landed: the record says so.
	ready, landed bool
	note          move.Note
	// waits: it is a copy that has never run, of a sandbox that leaves source.
	waits  bool
	source *region
	end    *siroccov1.End
}

// powerOff takes away the machine with everything on it.
func (m *machine) powerOff() {
	m.w.note(m.name, "loses power")
	m.agent.crash()
	m.dead = true
	for _, id := range append(sorted(m.copies), sorted(m.journal)...) {
		m.w.lost[id] = true // and how it ended, if that was not written yet
	}
	m.copies, m.journal = map[string]*execution{}, map[string]*entry{}
}

// begin puts a new execution on the machine.
func (m *machine) begin(x *execution) {
	x.on = m.name
	m.copies[x.id] = x
	m.w.note(m.name, "%s epoch %d is there, running: %v", x.id, x.epoch, x.runs)
	m.w.watchExecution(x)
}

func (m *machine) pause(x *execution) {
	if x.runs {
		x.runs = false
		m.w.note(m.name, "%s epoch %d is paused", x.id, x.epoch)
	}
}

func (m *machine) resume(x *execution) {
	if !x.runs {
		x.runs = true
		m.w.note(m.name, "%s epoch %d runs on, memory %d", x.id, x.epoch, len(x.memory))
		m.w.watchExecution(x)
	}
}

func (m *machine) destroy(x *execution) {
	if x != nil && m.copies[x.id] == x {
		delete(m.copies, x.id)
		m.w.note(m.name, "%s epoch %d is destroyed", x.id, x.epoch)
	}
}

// inventory is what the agent says that runs here.
func (m *machine) inventory() []*nodev1.InventoryItem {
	var items []*nodev1.InventoryItem
	for _, id := range sorted(m.copies) {
		items = append(items, &nodev1.InventoryItem{Tenant: tenant, Id: id, Epoch: m.copies[id].epoch})
	}
	return items
}

// serve is a request of a user that has come to this machine: it adds a value to the
// sandbox's memory, and answers.
func (m *machine) serve(id string, epoch uint64, value int) bool {
	u, x := m.agent.units[id], m.copies[id]
	if u == nil || x == nil || x.epoch != epoch || !x.runs || !x.ready || u.e.waits {
		return false
	}
	m.w.served(x)
	x.memory = append(slices.Clip(x.memory), value)
	return true
}
