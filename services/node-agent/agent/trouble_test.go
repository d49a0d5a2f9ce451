package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guest"
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
