package gvisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

const (
	recordFile = "sandbox.json"
	// emptyDir stands for the root file system where that is an image: gVisor
	// wants a folder to name.
	emptyDir = "empty"
)

// record is what the agent that comes after this one needs to go on with a
// sandbox. It is written when the sandbox runs, so that a folder without one is a
// creation that was cut short.
type record struct {
	ID      string   `json:"id"`
	Sandbox process  `json:"sandbox"`
	Gofer   *process `json:"gofer,omitempty"`
	Control string   `json:"control"`
}

// write puts the record into dir, whole or not at all.
func (r record) write(dir string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode sandbox record: %w", err)
	}
	tmp := filepath.Join(dir, recordFile+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write sandbox record: %w", err)
	}
	return os.Rename(tmp, filepath.Join(dir, recordFile))
}

// readRecord reads that of dir.
func readRecord(dir string) (record, error) {
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read sandbox record: %w", err)
	}
	if r.ID != filepath.Base(dir) {
		return r, fmt.Errorf("sandbox record in %s is of %q", dir, r.ID)
	}
	return r, nil
}
