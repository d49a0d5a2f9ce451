package gvisor_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	inside "github.com/sirocco-run/sirocco/pkg/guest"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/gvisortest"
)

const supervisorSecret = "0123456789abcdef0123456789abcdef"

func supervised(image, id string, memory int64) runtime.Spec {
	return runtime.Spec{
		ID: id, Rootfs: runtime.Rootfs{EROFS: image}, Hostname: "sandbox",
		Args: []string{gvisortest.SupervisorPath}, Env: []string{inside.SecretEnv + "=" + supervisorSecret},
		Resources: runtime.Resources{MemoryBytes: memory, CPUMillis: 2000, Pids: 200, DiskBytes: 64 << 20},
	}
}

// supervisor connects to the supervisor of a sandbox.
func supervisor(tb testing.TB, sb runtime.Sandbox) *inside.Client {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 20*time.Second)
	defer cancel()
	for {
		c, err := inside.Dial(ctx, func(ctx context.Context) (net.Conn, error) { return sb.Dial(ctx, runtime.GuestPort) }, []byte(supervisorSecret))
		if err == nil {
			tb.Cleanup(func() { _ = c.Close() })
			return c
		}
		if !errors.Is(err, runtime.ErrRefused) {
			tb.Fatal(err)
		}
	}
}

// output reads an exec's standard output from the beginning until it has want bytes.
func output(tb testing.TB, c *inside.Client, id string, want int) string {
	tb.Helper()
	r, err := c.Attach(tb.Context(), id, 0, 0, true)
	if err != nil {
		tb.Fatal(err)
	}
	defer r.Close()
	var got []byte
	for len(got) < want {
		o, err := r.Next()
		if err != nil {
			tb.Fatalf("output after %q: %v", got, err)
		}
		got = append(got, o.Data...)
	}
	return string(got)
}

// TestSupervisorMoves: execs go on in the copy, their output is there from the
// beginning, and the supervisor, which still has the connection of an agent that it
// will never hear of again, takes the new one.
func TestSupervisorMoves(t *testing.T) {
	image := gvisortest.SupervisorImage(t)
	here, there := open(t), open(t)
	source := create(t, here, supervised(image, "sb-source", 256<<20))
	old := supervisor(t, source)
	if err := old.Configure(t.Context(), inside.Setup{Hostname: "mine", Env: []string{"A=b"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Start(t.Context(), inside.StartRequest{ID: "main", Command: []string{gvisortest.GuestPath, "tick"}, Stdin: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Start(t.Context(), inside.StartRequest{ID: "short", Command: []string{gvisortest.GuestPath, "say", "done"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Wait(t.Context(), "short", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Stdin(t.Context(), "main", 0, []byte("\n"), false); err != nil {
		t.Fatal(err)
	}
	if got := output(t, old, "main", 4); got != "1\n2\n" {
		t.Fatalf("output %q", got)
	}
	// Somebody follows the output while the sandbox moves.
	following, err := old.Attach(t.Context(), "main", 0, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer following.Close()
	pause(t, source)
	dir := checkpoint(t, source, t.TempDir())
	moved := create(t, there, from(supervised(image, "sb-target", 256<<20), dir))
	resume(t, moved)
	began := time.Now()
	c := supervisor(t, moved)
	info, err := c.Ping(t.Context())
	if err != nil || !info.Configured || !info.MainStarted {
		t.Errorf("ping: %+v, %v", info, err)
	}
	t.Logf("the supervisor answers after %v", time.Since(began))
	if got := output(t, c, "main", 4); got != "1\n2\n" {
		t.Errorf("output from the beginning: %q", got)
	}
	if got := output(t, c, "short", 5); got != "done\n" {
		t.Errorf("output of one that had ended: %q", got)
	}
	// A resend of the first byte, and one more.
	if taken, err := c.Stdin(t.Context(), "main", 0, []byte("\n\n"), false); err != nil || taken != 2 {
		t.Errorf("input: %d, %v", taken, err)
	}
	if got := output(t, c, "main", 6); got != "1\n2\n3\n" {
		t.Errorf("it goes on with %q", got)
	}
	if _, err := c.Start(t.Context(), inside.StartRequest{ID: "new", Command: []string{gvisortest.GuestPath, "say", "new"}}); err != nil {
		t.Error(err)
	}
	if got := output(t, c, "new", 4); got != "new\n" {
		t.Errorf("output of a new one: %q", got)
	}
	execs, err := c.ListExecs(t.Context())
	var ids []string
	for _, x := range execs {
		ids = append(ids, x.ID)
	}
	slices.Sort(ids)
	if err != nil || fmt.Sprint(ids) != "[main new short]" {
		t.Errorf("execs %v, %v", ids, err)
	}
	// Nothing is left of the old connection in the copy.
	r, err := c.ReadFile(t.Context(), "/proc/net/tcp", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var table strings.Builder
	if _, err := io.Copy(&table, r); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(table.String(), fmt.Sprintf("0100007F:%04X 0100007F:", runtime.GuestPort)); n != 1 {
		t.Errorf("the supervisor has %d connections:\n%s", n, &table)
	}
	// And had the move failed, the original would have gone on, on its old connection.
	resume(t, source)
	if _, err := old.Ping(t.Context()); err != nil {
		t.Errorf("ping of the original: %v", err)
	}
	if _, err := old.Stdin(t.Context(), "main", 1, []byte("\n"), false); err != nil {
		t.Error(err)
	}
	for got := ""; got != "1\n2\n3\n"; {
		o, err := following.Next()
		if err != nil {
			t.Fatalf("following stops after %q: %v", got, err)
		}
		got += string(o.Data)
	}
}

// BenchmarkCheckpointRestore measures the parts of a move without the transfer: until
// the supervisor of the copy has answered. The folder of the checkpoint is in memory or
// on disk; memory is filled with random bytes.
func BenchmarkCheckpointRestore(b *testing.B) {
	image := gvisortest.SupervisorImage(b)
	for _, where := range []string{"/dev/shm", os.TempDir()} {
		for _, size := range []int{0, 64, 256} {
			b.Run(fmt.Sprintf("%s/%dMB", strings.Trim(where, "/"), size), func(b *testing.B) {
				rt := open(b)
				benchmarkMove(b, rt, image, where, size)
			})
		}
	}
}

func benchmarkMove(b *testing.B, rt *gvisor.Runtime, image, where string, size int) {
	source := create(b, rt, supervised(image, "sb-source", 1<<30))
	c := supervisor(b, source)
	if err := c.Configure(b.Context(), inside.Setup{}); err != nil {
		b.Fatal(err)
	}
	if size > 0 {
		command := []string{gvisortest.GuestPath, "fill", fmt.Sprint(size << 20)}
		if _, err := c.Start(b.Context(), inside.StartRequest{ID: "main", Command: command, Stdin: true}); err != nil {
			b.Fatal(err)
		}
		output(b, c, "main", 5)
	}
	laps := map[string][]time.Duration{}
	var bytes int64
	for b.Loop() {
		dir, err := os.MkdirTemp(where, "sirocco-bench-")
		if err != nil {
			b.Fatal(err)
		}
		last := time.Now()
		lap := func(name string) {
			now := time.Now()
			laps[name] = append(laps[name], now.Sub(last))
			last = now
		}
		began := last
		cpu := spentOn(b, source)
		pause(b, source)
		lap("pause")
		checkpoint(b, source, dir)
		lap("checkpoint")
		laps["cpu-checkpoint"] = append(laps["cpu-checkpoint"], spentOn(b, source)-cpu)
		spec := supervised(image, "sb-target", 1<<30)
		prepared := last
		spec.Restore = func(context.Context) (string, error) { prepared = time.Now(); return dir, nil }
		copied, err := rt.Create(b.Context(), spec)
		if err != nil {
			b.Fatal(err)
		}
		laps["prepare"] = append(laps["prepare"], prepared.Sub(last))
		last = prepared
		lap("restore")
		resume(b, copied)
		cc := supervisor(b, copied)
		if _, err := cc.Ping(b.Context()); err != nil {
			b.Fatal(err)
		}
		lap("answer")
		laps["all"] = append(laps["all"], last.Sub(began))
		laps["cpu-restore"] = append(laps["cpu-restore"], spentOn(b, copied))
		files, err := os.ReadDir(dir)
		if err != nil {
			b.Fatal(err)
		}
		bytes = 0
		for _, f := range files {
			i, err := f.Info()
			if err != nil {
				b.Fatal(err)
			}
			bytes += i.Size()
		}
		if err := errors.Join(copied.Destroy(b.Context()), os.RemoveAll(dir)); err != nil {
			b.Fatal(err)
		}
		resume(b, source)
	}
	for name, d := range laps {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, "ms-p50/"+name)
		b.ReportMetric(float64(d[0].Microseconds())/1000, "ms-min/"+name)
		b.ReportMetric(float64(d[len(d)-1].Microseconds())/1000, "ms-max/"+name)
	}
	b.ReportMetric(float64(bytes)/(1<<20), "MB")
}

// spentOn is the processors' time of a sandbox, since it was made.
func spentOn(tb testing.TB, sb runtime.Sandbox) time.Duration {
	tb.Helper()
	st, err := sb.Stats(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return st.CPU
}
