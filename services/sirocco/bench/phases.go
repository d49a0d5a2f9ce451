package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// maxLogLine bounds a line of a platform's log.
const maxLogLine = 1 << 20

// phases are the parts of a move's pause, as the node says that the sandbox leaves.
type phases struct {
	Sandbox string
	// Bytes is the checkpoint, Sent what went over the wire.
	Bytes, Sent int64
	// Ahead is for how long it stood still before, to have its memory sent ahead; 0 if it
	// was not. Save writes the checkpoint, Transfer is what remains of sending it after that, and
	// Restore what remains of restoring it then.
	Ahead, Save, Transfer, Restore time.Duration
}

// readPhases returns those of all moves since a time from a log in JSON, behind the
// region's name.
func readPhases(path string, since time.Time) ([]phases, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	defer func() { _ = file.Close() }()
	var all []phases
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, maxLogLine)
	for lines.Scan() {
		if !bytes.Contains(lines.Bytes(), []byte(`"sandbox copied"`)) {
			continue
		}
		var line struct {
			Time time.Time
			Msg  string
			phases
		}
		_, text, _ := bytes.Cut(lines.Bytes(), []byte(": "))
		if err := json.Unmarshal(text, &line); err != nil {
			return nil, fmt.Errorf("read the log: %w: %q", err, lines.Bytes())
		}
		if line.Msg == "sandbox copied" && !line.Time.Before(since) {
			all = append(all, line.phases)
		}
	}
	return all, lines.Err()
}
