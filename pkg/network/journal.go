package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// entry is what a restarted agent must know about a held slot: the rest derives
// from the index. It is in a file named like the sandbox, written before the
// sandbox can send anything and removed after it no longer can. Nothing is
// synced: after a reboot there are no slots.
type entry struct {
	Index  int          `json:"index"`
	Policy Policy       `json:"policy"`
	DNS    []netip.Addr `json:"dns"`
	MTU    int          `json:"mtu"`
}

// writeFile replaces a file as a whole, so that a crash leaves the old or the
// new content.
func writeFile(name string, content []byte) error {
	tmp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name))
	if err := os.WriteFile(tmp, content, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

func (n names) writeEntry(id string, e entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return writeFile(n.id(id), b)
}

func (n names) removeEntry(id string) error {
	if err := os.Remove(n.id(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// entries reads all entries. Files that can't be understood are returned by
// name: their slots can't be told from leaked ones.
func (n names) entries() (known map[string]entry, broken []string, err error) {
	files, err := os.ReadDir(n.idDir())
	if err != nil {
		return nil, nil, err
	}
	known = map[string]entry{}
	for _, f := range files {
		id := f.Name()
		if strings.HasPrefix(id, ".") { // a write that a crash cut off
			broken = append(broken, id)
			continue
		}
		b, err := os.ReadFile(n.id(id))
		if err != nil {
			return nil, nil, err
		}
		e, err := parseEntry(b)
		if err != nil || !slotID.MatchString(id) {
			broken = append(broken, id)
			continue
		}
		known[id] = e
	}
	return known, broken, nil
}

func parseEntry(b []byte) (entry, error) {
	var e entry
	if err := json.Unmarshal(b, &e); err != nil {
		return e, err
	}
	policy, err := e.Policy.normal()
	if err != nil {
		return e, err
	}
	e.Policy = policy
	if e.Index < 0 || e.MTU < 0 {
		return e, fmt.Errorf("index %d, mtu %d", e.Index, e.MTU)
	}
	for _, a := range e.DNS {
		if !resolverUsable(a) {
			return e, fmt.Errorf("resolver %s", a)
		}
	}
	return e, nil
}

func (n names) readRange() (netip.Prefix, bool) {
	b, err := os.ReadFile(n.rangeFile())
	if err != nil {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(strings.TrimSpace(string(b)))
	return p, err == nil && rangeUsable(p) == nil
}
