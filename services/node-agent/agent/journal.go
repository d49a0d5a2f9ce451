package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/image"
	"github.com/sirocco-run/sirocco/pkg/move"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// entry is what the agent must know of a sandbox after it was killed and
// started again, without asking anybody.
type entry struct {
	// Record as the agent knows it: spec, deadline and epoch.
	Record []byte `json:"record"`
	// Cell is what the sandbox runs in.
	Cell *cellEntry `json:"cell"`
	// Running is set once the sandbox was ready.
	Running bool `json:"running,omitempty"`
	// Leaving is how far a move away from here has come.
	Leaving move.Note `json:"leaving,omitzero"`
	// Arriving is how far a move to here has come.
	Arriving arriving `json:"arriving,omitempty"`
	// Guard is who keeps checkpoints of it elsewhere.
	Guard guardNote `json:"guard,omitzero"`
	// End is set once it is known how the sandbox ended: from then on the end is
	// only carried out and written down.
	End []byte `json:"end,omitempty"`
}

// cellEntry is what must be known of a cell. A warm one has an entry of its own;
// that of a sandbox is part of the sandbox's, and counts if there are both.
type cellEntry struct {
	ID string `json:"id"`
	// Key is that of its template.
	Key string `json:"key"`
	// Template is the encoded template, empty for one that is not warm any more.
	Template []byte `json:"template,omitempty"`
	// Secret opens the supervisor.
	Secret []byte      `json:"secret"`
	Image  image.Image `json:"image"`
	Built  time.Time   `json:"built"`
	// Runtime is the version of what runs it.
	Runtime string `json:"runtime"`
}

func (e *entry) sandbox() (*siroccov1.Sandbox, error) {
	sb := &siroccov1.Sandbox{}
	return sb, proto.Unmarshal(e.Record, sb)
}

func (e *entry) end() *siroccov1.End {
	if len(e.End) == 0 {
		return nil
	}
	end := &siroccov1.End{}
	if proto.Unmarshal(e.End, end) != nil {
		return &siroccov1.End{Cause: siroccov1.Cause_CAUSE_INTERNAL, Message: "the node's note of how it ended was damaged"}
	}
	return end
}

// journal keeps an entry of each id in a folder. A write is whole or did not
// happen. It survives the agent, not the machine: neither do sandboxes, so nothing
// is synced to disk.
//
// Each write makes a file of its own, with the next number behind the id, and only
// then removes the one before: a file that replaces another would be written to
// disk at once (ext4's auto_da_alloc), which a start would wait for.
//
// Writes for one id come one after another; the caller sees to it.
type journal[E any] struct {
	dir string

	mu   sync.Mutex
	last map[string]uint64 // the number of the id's file
}

func openJournal[E any](dir string) (*journal[E], error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return &journal[E]{dir: dir, last: map[string]uint64{}}, nil
}

const entrySuffix = ".json"

func (j *journal[E]) path(id string, n uint64) string {
	return filepath.Join(j.dir, id+"."+strconv.FormatUint(n, 10)+entrySuffix)
}

// parseEntry is the reverse of path.
func parseEntry(file string) (id string, n uint64, ok bool) {
	name, ok := strings.CutSuffix(file, entrySuffix)
	if !ok {
		return "", 0, false
	}
	id, number, _ := strings.Cut(name, ".")
	n, err := strconv.ParseUint(number, 10, 64)
	return id, n, err == nil && id != ""
}

// swap sets the number of an id's file, none for 0, and returns the one before.
func (j *journal[E]) swap(id string, n uint64) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	before := j.last[id]
	if n == 0 {
		delete(j.last, id)
	} else {
		j.last[id] = n
	}
	return before
}

func (j *journal[E]) write(id string, e *E) error {
	raw, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write journal of %s: %w", id, err)
	}
	j.mu.Lock()
	before := j.last[id]
	j.mu.Unlock()
	if err := os.WriteFile(j.path(id, before+1), raw, 0o600); err != nil {
		_ = os.Remove(j.path(id, before+1))
		return fmt.Errorf("write journal of %s: %w", id, err)
	}
	j.swap(id, before+1)
	if before > 0 {
		// What stays is older, and counts only if the newer can't be read.
		_ = os.Remove(j.path(id, before))
	}
	return nil
}

func (j *journal[E]) remove(id string) error {
	n := j.swap(id, 0)
	if n == 0 {
		return nil
	}
	if err := os.Remove(j.path(id, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove journal of %s: %w", id, err)
	}
	return nil
}

// all returns every entry, of each id the newest that can be read. What is no whole
// entry is removed: what it is about is then an orphan, and swept. It is for a journal
// that was just opened.
func (j *journal[E]) all() (map[string]*E, error) {
	files, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	out := map[string]*E{}
	for _, f := range files {
		path := filepath.Join(j.dir, f.Name())
		id, n, ok := parseEntry(f.Name())
		if !ok || n <= j.last[id] {
			_ = os.Remove(path)
			continue
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read journal: %w", err)
		}
		e := new(E)
		if json.Unmarshal(raw, e) != nil {
			_ = os.Remove(path) // half a write
			continue
		}
		out[id] = e
		if before := j.swap(id, n); before > 0 {
			_ = os.Remove(j.path(id, before))
		}
	}
	return out, nil
}
