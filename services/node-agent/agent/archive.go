package agent

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirocco-run/sirocco/pkg/guest"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// archiveTimeout bounds how long a sandbox's end waits for the last output of
// its command.
const archiveTimeout = 2 * time.Second

// archives keep the output of sandboxes' commands after the sandboxes are gone:
// the newest part of it, for a while.
//
// A file is a line of JSON (archiveHead) and then runs of output in the order
// in which they came: stream (1 byte), offset (8), length (4), bytes.
type archives struct {
	dir   string
	limit int64 // for each stream
	age   time.Duration
}

// archiveHead describes an archived command.
type archiveHead struct {
	Tenant string      `json:"tenant"`
	Exec   *guest.Exec `json:"exec"`
}

// run is a piece of output.
type run struct {
	stream guest.Stream
	offset int64
	data   []byte
}

const archiveSuffix = ".log"

func openArchives(dir string, limit int64, age time.Duration) (*archives, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open log folder: %w", err)
	}
	return &archives{dir: dir, limit: limit, age: age}, nil
}

func (a *archives) path(id string) string { return filepath.Join(a.dir, id+archiveSuffix) }

// write keeps the runs; the oldest fall away beyond the limit.
func (a *archives) write(id string, head archiveHead, runs []run) (err error) {
	temp := filepath.Join(a.dir, "."+id)
	file, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600) //nolint:gosec // the id has been checked
	if err != nil {
		return fmt.Errorf("keep log of %s: %w", id, err)
	}
	defer func() {
		err = errors.Join(err, file.Close())
		if err == nil {
			err = os.Rename(temp, a.path(id))
		}
		if err != nil {
			_ = os.Remove(temp)
			err = fmt.Errorf("keep log of %s: %w", id, err)
		}
	}()
	first, err := json.Marshal(head)
	if err != nil {
		return err
	}
	buf := make([]byte, 0, len(first)+1)
	buf = append(append(buf, first...), '\n')
	for _, r := range newest(runs, a.limit) {
		buf = append(buf, byte(r.stream))
		buf = binary.BigEndian.AppendUint64(buf, uint64(r.offset))    //nolint:gosec // offsets are not negative
		buf = binary.BigEndian.AppendUint32(buf, uint32(len(r.data))) //nolint:gosec // runs are small
		buf = append(buf, r.data...)
	}
	_, err = file.Write(buf)
	return err
}

// newest drops the oldest runs of each stream beyond limit bytes.
func newest(runs []run, limit int64) []run {
	var kept [2]int64
	first := len(runs)
	drop := make([]bool, len(runs))
	for i := len(runs) - 1; i >= 0; i-- {
		s := runs[i].stream
		kept[s] += int64(len(runs[i].data))
		drop[i] = kept[s] > limit
		if !drop[i] {
			first = i
		}
	}
	out := make([]run, 0, len(runs)-first)
	for i, r := range runs {
		if !drop[i] {
			out = append(out, r)
		}
	}
	return out
}

// read returns what is kept of a sandbox's command, or fs.ErrNotExist.
func (a *archives) read(id string) (archiveHead, []run, error) {
	var head archiveHead
	if !sandboxid.Valid(id) {
		return head, nil, fs.ErrNotExist
	}
	raw, err := os.ReadFile(a.path(id))
	if err != nil {
		return head, nil, err
	}
	line, rest, ok := strings.Cut(string(raw), "\n")
	if !ok || json.Unmarshal([]byte(line), &head) != nil {
		return head, nil, fs.ErrNotExist
	}
	runs, err := parseRuns([]byte(rest))
	return head, runs, err
}

func parseRuns(raw []byte) ([]run, error) {
	const header = 1 + 8 + 4
	var runs []run
	for len(raw) > 0 {
		if len(raw) < header {
			return runs, io.ErrUnexpectedEOF
		}
		stream := guest.Stream(raw[0])
		offset := binary.BigEndian.Uint64(raw[1:9])
		size := int(binary.BigEndian.Uint32(raw[9:13]))
		raw = raw[header:]
		if size > len(raw) || stream > guest.Stderr || offset > 1<<62 {
			return runs, io.ErrUnexpectedEOF
		}
		runs = append(runs, run{stream, int64(offset), raw[:size]})
		raw = raw[size:]
	}
	return runs, nil
}

// expire removes what has been kept for long enough.
func (a *archives) expire(now time.Time) {
	files, err := os.ReadDir(a.dir)
	if err != nil {
		return
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil && now.Sub(info.ModTime()) > a.age {
			_ = os.Remove(filepath.Join(a.dir, f.Name()))
		}
	}
}

// archive takes the output of the sandbox's command out of the sandbox before
// it is destroyed. It is best effort, and quick.
func (m *machine) archive(ctx context.Context, end *siroccov1.End) {
	sb := m.current()
	if end == nil || m.cell == nil || m.cell.dead() || len(sb.GetSpec().GetCommand()) == 0 || end.GetCause() == siroccov1.Cause_CAUSE_START_ERROR {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, archiveTimeout)
	defer cancel()
	client, err := m.cell.guest(ctx)
	if err != nil {
		return
	}
	// The sandbox is about to be destroyed: a supervisor that answers nothing any
	// more must not delay that, whatever it keeps the connection from.
	defer context.AfterFunc(ctx, func() { _ = client.Close() })()
	// Both are asked for at once, which wakes the sandbox once.
	reader, err := client.Logs(ctx, guest.MainExec, false)
	if err != nil {
		return
	}
	defer func() { _ = reader.Close() }()
	x, err := client.Wait(ctx, guest.MainExec, 0)
	if err != nil {
		return
	}
	runs := m.drain(reader)
	if err := m.agent.archives.write(m.id, archiveHead{Tenant: m.tenant, Exec: &x}, runs); err != nil {
		m.log.Warn("the command's output is lost with the sandbox", "err", err)
	}
}

// drain reads output to its end, or to where it breaks off.
func (m *machine) drain(reader *guest.OutputReader) []run {
	var runs []run
	var held int64
	for {
		out, err := reader.Next()
		if err != nil {
			return newest(runs, m.agent.archives.limit)
		}
		if len(out.Data) > 0 {
			runs = append(runs, run{out.Stream, out.Offset, append([]byte(nil), out.Data...)})
			held += int64(len(out.Data))
		}
		// A command may have written much more than is kept.
		if held > 4*m.agent.archives.limit {
			runs = newest(runs, m.agent.archives.limit)
			held = 2 * m.agent.archives.limit
		}
	}
}
