package gvisor_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
)

// TestPagesAreAppended: what is in runtime.PagesFile while a checkpoint is being written
// is what is there in the end, so that it can be sent meanwhile.
func TestPagesAreAppended(t *testing.T) {
	if runtime.PagesFile != checkpointfiles.PagesFileName {
		t.Fatalf("gVisor calls the file %q", checkpointfiles.PagesFileName)
	}
	sb := create(t, open(t), spec(t, "sb-pages", "serve"))
	ask(t, sb, "keep 60000000")
	pause(t, sb)
	dir := t.TempDir()
	path, saved, early := filepath.Join(dir, runtime.PagesFile), make(chan struct{}), make(chan []byte, 1)
	go func() {
		var read bytes.Buffer
		defer func() { early <- read.Bytes() }()
		for {
			select {
			case <-saved:
				return
			case <-time.After(time.Millisecond):
			}
			f, err := os.Open(path)
			if err != nil {
				continue
			}
			_, err = io.Copy(&read, io.NewSectionReader(f, int64(read.Len()), 1<<40))
			_ = f.Close()
			if err != nil {
				t.Error(err)
				return
			}
		}
	}()
	checkpoint(t, sb, dir)
	close(saved)
	got := <-early
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) == 0 || len(whole) < 60000000 {
		t.Fatalf("%d of %d bytes were read early", len(got), len(whole))
	}
	if !bytes.HasPrefix(whole, got) {
		t.Error("what was read early was written again")
	}
}
