package agent

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/guest"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"
)

func TestLedgerNeverPromisesMoreThanThereIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLedger(amount{
			rapid.Int64Range(0, 100).Draw(t, "cpu"), rapid.Int64Range(0, 100).Draw(t, "mem"), rapid.Int64Range(0, 10).Draw(t, "n"),
		})
		held := map[string]amount{}
		for i := range rapid.IntRange(1, 50).Draw(t, "steps") {
			id := fmt.Sprint(rapid.IntRange(0, 12).Draw(t, "id"))
			if rapid.Bool().Draw(t, "release") {
				l.release(id)
				delete(held, id)
			} else {
				need := amount{rapid.Int64Range(0, 30).Draw(t, "c"), rapid.Int64Range(0, 30).Draw(t, "m"), 1}
				_, had := held[id]
				if l.reserve(id, need) == nil && !had {
					held[id] = need
				}
			}
			var sum amount
			for _, a := range held {
				sum.cpuMillis += a.cpuMillis
				sum.memoryBytes += a.memoryBytes
				sum.sandboxes += a.sandboxes
			}
			used, capacity := l.totals()
			if used != sum {
				t.Fatalf("step %d: the ledger says %+v, held is %+v", i, used, sum)
			}
			if used.cpuMillis > capacity.cpuMillis || used.memoryBytes > capacity.memoryBytes || used.sandboxes > capacity.sandboxes {
				t.Fatalf("step %d: %+v is more than %+v", i, used, capacity)
			}
		}
	})
}

func TestActivity(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a := newActivity(&siroccov1.IdlePolicy{
		Timeout: durationpb.New(time.Minute), Activity: []siroccov1.Activity{siroccov1.Activity_ACTIVITY_EXEC},
	}, t0)
	expect := func(now, want time.Time) {
		t.Helper()
		if at, ok := a.idleAt(now); !ok || !at.Equal(want) {
			t.Errorf("idle at %v, %v; want %v", at, ok, want)
		}
	}
	expect(t0, t0.Add(time.Minute))
	a.touch(siroccov1.Activity_ACTIVITY_TUNNEL, t0.Add(10*time.Second)) // does not count
	expect(t0, t0.Add(time.Minute))
	a.touch(siroccov1.Activity_ACTIVITY_EXEC, t0.Add(20*time.Second))
	expect(t0, t0.Add(80*time.Second))
	a.setExecs(1, t0.Add(30*time.Second))
	expect(t0.Add(time.Hour), t0.Add(time.Hour+time.Minute)) // busy for as long as it runs
	a.setExecs(0, t0.Add(2*time.Hour))
	expect(t0.Add(2*time.Hour), t0.Add(2*time.Hour+time.Minute))
	if _, ok := newActivity(nil, t0).idleAt(t0); ok {
		t.Error("a sandbox without an idle timeout is idle")
	}
}

func TestArchiveKeepsTheNewest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var runs []run
		var all [2][]byte
		for range rapid.IntRange(0, 30).Draw(t, "runs") {
			s := guest.Stream(rapid.IntRange(0, 1).Draw(t, "stream"))
			data := rapid.SliceOfN(rapid.Byte(), 1, 50).Draw(t, "data")
			runs = append(runs, run{s, int64(len(all[s])), data})
			all[s] = append(all[s], data...)
		}
		limit := rapid.Int64Range(0, 500).Draw(t, "limit")
		var kept [2]int64
		var end [2]int64
		for _, r := range newest(runs, limit) {
			if !bytes.Equal(r.data, all[r.stream][r.offset:r.offset+int64(len(r.data))]) {
				t.Fatal("bytes moved")
			}
			if end[r.stream] != 0 && r.offset != end[r.stream] {
				t.Fatal("a hole in the middle")
			}
			end[r.stream] = r.offset + int64(len(r.data))
			kept[r.stream] += int64(len(r.data))
		}
		for s, n := range kept {
			if n > limit || n < min(limit, int64(len(all[s])))-50 {
				t.Fatalf("stream %d: kept %d of %d with limit %d", s, n, len(all[s]), limit)
			}
			if n > 0 && end[s] != int64(len(all[s])) {
				t.Fatal("the newest bytes are not kept")
			}
		}
	})
}

func TestArchiveRoundTrip(t *testing.T) {
	a, err := openArchives(t.TempDir(), 1<<20, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	id := sandboxid.New()
	head := archiveHead{Tenant: "acme", Exec: &guest.Exec{ID: "main", End: &guest.End{Code: 3}}}
	runs := []run{{guest.Stdout, 0, []byte("out\n")}, {guest.Stderr, 0, []byte("err")}, {guest.Stdout, 4, []byte("more")}}
	if err := a.write(id, head, runs); err != nil {
		t.Fatal(err)
	}
	got, back, err := a.read(id)
	if err != nil || got.Tenant != "acme" || got.Exec.End.Code != 3 || len(back) != 3 || string(back[2].data) != "more" || back[2].offset != 4 {
		t.Fatalf("read %+v, %+v, %v", got, back, err)
	}
	if _, _, err := a.read("../" + id); err == nil {
		t.Error("a path was read as an id")
	}
	a.expire(time.Now().Add(2 * time.Hour))
	if _, _, err := a.read(id); err == nil {
		t.Error("it was not removed in time")
	}
}

func FuzzParseRuns(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 'x'})
	f.Fuzz(func(t *testing.T, raw []byte) {
		runs, _ := parseRuns(raw)
		total := 0
		for _, r := range runs {
			total += len(r.data)
		}
		if total > len(raw) {
			t.Fatal("more bytes than there were")
		}
	})
}

func TestJournalSurvivesHalfWrites(t *testing.T) {
	dir := t.TempDir()
	j, err := openJournal[entry](dir)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(&siroccov1.Sandbox{Id: "sb-a", Tenant: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	for _, running := range []bool{false, true} {
		if err := j.write("sb-a", &entry{Record: raw, Running: running}); err != nil {
			t.Fatal(err)
		}
	}
	// A write that broke off leaves the one before; a crash before its removal, both.
	for name, text := range map[string]string{"sb-a.3.json": `{"rec`, "sb-a.1.json": `{}`, ".sb-b": `{"rec`, "sb-c.1.json": `{"rec`, "sb-d.json": "{}"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if j, err = openJournal[entry](dir); err != nil {
		t.Fatal(err)
	}
	all, err := j.all()
	if err != nil || len(all) != 1 || all["sb-a"] == nil || !all["sb-a"].Running {
		t.Fatalf("all() = %v, %v", all, err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("%d files are left, %v", len(files), err)
	}
	if err := j.remove("sb-a"); err != nil {
		t.Error(err)
	}
	if err := j.remove("sb-a"); err != nil {
		t.Errorf("remove twice: %v", err)
	}
}
