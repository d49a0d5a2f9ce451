package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guest"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// TestTroubleOfSweepsIsToldOnce: what lasts fills no log, and a state folder
// that has gone is called that.
func TestTroubleOfSweepsIsToldOnce(t *testing.T) {
	var out bytes.Buffer
	a := &Agent{log: slog.New(slog.NewTextHandler(&out, nil)), cfg: Config{StateDir: t.TempDir()}}
	told := func() int {
		n := strings.Count(out.String(), "level=ERROR")
		out.Reset()
		return n
	}
	busy := errors.New("a mount is busy")
	before := a.tellTrouble("", busy)
	if before = a.tellTrouble(before, busy); told() != 1 {
		t.Error("the same trouble was not told once")
	}
	if before = a.tellTrouble(before, nil); before != "" || !strings.Contains(out.String(), "work again") {
		t.Errorf("after the trouble: %q, %s", before, out.String())
	}
	out.Reset()
	before = a.tellTrouble(a.tellTrouble("", nil), busy)
	if told() != 1 {
		t.Error("trouble that came back was not told")
	}
	if err := os.Remove(a.cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	_, gone := os.ReadDir(filepath.Join(a.cfg.StateDir, "sandboxes"))
	before = a.tellTrouble(before, gone)
	if !strings.Contains(out.String(), "the state folder "+a.cfg.StateDir+" is gone") {
		t.Errorf("told: %s", out.String())
	}
	if a.tellTrouble(before, gone); told() != 1 {
		t.Error("a folder that stays away was told again")
	}
}

// TestAFailedProbeNamesTheSandbox: its tenant knows nothing of cells.
func TestAFailedProbeNamesTheSandbox(t *testing.T) {
	cell, sandbox := newCellID(), sandboxid.New()
	err := &probeError{fmt.Errorf("port 80: dial port 80 of sandbox %s: %w", cell, runtime.ErrRefused), cell, sandbox}
	if want := "readiness probe: port 80: dial port 80 of sandbox " + sandbox + ": runtime: connection refused"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}

// TestAnUnknownStreamIsRefused: it is not the standard output.
func TestAnUnknownStreamIsRefused(t *testing.T) {
	for stream, known := range map[siroccov1.OutputStream]bool{
		siroccov1.OutputStream_OUTPUT_STREAM_UNSPECIFIED: true, siroccov1.OutputStream_OUTPUT_STREAM_STDOUT: true,
		siroccov1.OutputStream_OUTPUT_STREAM_STDERR: true, 9: false, -1: false,
	} {
		// What is known is refused after that, for want of a token.
		err := execService{&services{}}.ReadOutput(t.Context(), connect.NewRequest(&siroccov1.ReadExecOutputRequest{Stream: stream}), nil)
		f := fault.From(err)
		if known && f.Code != fault.Unauthenticated || !known && (f.Code != fault.InvalidArgument || f.Field != "stream") {
			t.Errorf("stream %d: %v, field %q", stream, f, f.Field)
		}
	}
}

// TestFaultsOfStartsNameTheField: clients tell a missing command by it.
func TestFaultsOfStartsNameTheField(t *testing.T) {
	m := &machine{}
	type want struct {
		code  fault.Code
		field string
	}
	for code, w := range map[guest.Code]want{
		guest.CodeCommandNotFound: {fault.InvalidArgument, "command"}, guest.CodeNotExecutable: {fault.PermissionDenied, "command"},
		guest.CodeWorkdirMissing: {fault.InvalidArgument, "workdir"}, guest.CodeWorkdirDenied: {fault.PermissionDenied, "workdir"},
		guest.CodeUnknownUser: {fault.InvalidArgument, "user"}, guest.CodeInvalid: {fault.InvalidArgument, ""},
	} {
		f := fault.From(m.guestFault(context.Background(), guest.Fail(code, "no such thing")))
		if f.Code != w.code || f.Field != w.field {
			t.Errorf("%s: %v, field %q; want %v", code, f, f.Field, w)
		}
		if want := map[bool]string{true: "guest: no such thing", false: "no such thing"}[w.field == ""]; f.Message != want {
			t.Errorf("%s: message %q, want %q", code, f.Message, want)
		}
	}
}

// TestARefusedSignalNamesTheField: but not where the id may be what is wrong.
func TestARefusedSignalNamesTheField(t *testing.T) {
	m := &machine{}
	refused := m.guestFault(t.Context(), guest.Fail(guest.CodeInvalid, "no signal SIG-9"))
	for id, field := range map[string]string{"main": "signal", "a b": ""} {
		if f := fault.From(signalFault(id, refused)); f.Code != fault.InvalidArgument || f.Field != field {
			t.Errorf("exec %q: %v, field %q; want %q", id, f, f.Field, field)
		}
	}
	if f := fault.From(signalFault("main", m.guestFault(t.Context(), guest.Fail(guest.CodeNotFound, "no exec")))); f.Code != fault.NotFound || f.Field != "" {
		t.Errorf("%v", f)
	}
}
