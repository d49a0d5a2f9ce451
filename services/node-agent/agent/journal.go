package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/image"
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
type journal[E any] struct{ dir string }

func openJournal[E any](dir string) (*journal[E], error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return &journal[E]{dir: dir}, nil
}

const entrySuffix = ".json"

func (j *journal[E]) path(id string) string { return filepath.Join(j.dir, id+entrySuffix) }

func (j *journal[E]) write(id string, e *E) error {
	raw, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write journal of %s: %w", id, err)
	}
	temp := filepath.Join(j.dir, "."+id)
	if err := os.WriteFile(temp, raw, 0o600); err != nil {
		return fmt.Errorf("write journal of %s: %w", id, err)
	}
	if err := os.Rename(temp, j.path(id)); err != nil {
		return fmt.Errorf("write journal of %s: %w", id, err)
	}
	return nil
}

func (j *journal[E]) remove(id string) error {
	if err := os.Remove(j.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove journal of %s: %w", id, err)
	}
	return nil
}

// all returns every entry. One that can't be read is removed: what it is about
// is then an orphan, and swept.
func (j *journal[E]) all() (map[string]*E, error) {
	files, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	out := map[string]*E{}
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), entrySuffix)
		if !ok {
			_ = os.Remove(filepath.Join(j.dir, f.Name())) // half a write
			continue
		}
		raw, err := os.ReadFile(j.path(id))
		if err != nil {
			return nil, fmt.Errorf("read journal: %w", err)
		}
		e := new(E)
		if json.Unmarshal(raw, e) != nil {
			_ = os.Remove(j.path(id))
			continue
		}
		out[id] = e
	}
	return out, nil
}
