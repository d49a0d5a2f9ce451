package up

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// stopTimeout bounds the end of all sandboxes.
const stopTimeout = 2 * time.Minute

// Live returns the sandboxes of all tenants that have not ended.
func Live(ctx context.Context, nc *nats.Conn) ([]*siroccov1.Sandbox, error) {
	var live []*siroccov1.Sandbox
	err := withView(ctx, nc, func(ctx context.Context, js jetstream.JetStream, view *record.View) (err error) {
		live, err = liveOf(ctx, js, view)
		return err
	})
	return live, err
}

// liveOf leaves out what sandboxes have left here that moved to other regions: there they
// live, and end.
func liveOf(ctx context.Context, js jetstream.JetStream, view *record.View) ([]*siroccov1.Sandbox, error) {
	region, err := regionOf(ctx, js)
	if err != nil {
		return nil, err
	}
	var live []*siroccov1.Sandbox
	view.Each(func(sb *siroccov1.Sandbox) bool {
		if sb.GetEnd() == nil && (region == "" || !lifecycle.Shadow(sb, region)) {
			live = append(live, sb)
		}
		return true
	})
	return live, nil
}

// regionOf returns the region of a bus: that of its nodes; "" if it has none, as then
// there is nothing that could have moved.
func regionOf(ctx context.Context, js jetstream.JetStream) (string, error) {
	bucket, err := js.KeyValue(ctx, subject.BucketNodes)
	if err != nil {
		return "", fmt.Errorf("open bucket %s: %w", subject.BucketNodes, err)
	}
	keys, err := bucket.ListKeys(ctx)
	if err != nil {
		return "", fmt.Errorf("read bucket %s: %w", subject.BucketNodes, err)
	}
	defer func() { _ = keys.Stop() }()
	for key := range keys.Keys() {
		if region, _, err := subject.ParseNodeKey(key); err == nil {
			return region, nil
		}
	}
	return "", nil
}

// withView calls f with a view of all records that has caught up.
func withView(ctx context.Context, nc *nats.Conn, f func(context.Context, jetstream.JetStream, *record.View) error) error {
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	store, err := record.Open(ctx, js)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	view := record.NewView(store, record.ViewOptions{})
	done := make(chan error, 1)
	go func() { done <- view.Run(ctx) }()
	select {
	case <-view.Ready():
		err = f(ctx, js, view)
		cancel()
		<-done //nolint:errcheck // it ends because of the cancel: nothing to tell
		return err
	case err := <-done:
		return fmt.Errorf("read the records: %w", errors.Join(err, context.Cause(ctx)))
	}
}

// StopSandboxes ends every sandbox of every tenant and returns how many, once
// all have ended. The services must be running.
func StopSandboxes(ctx context.Context, nc *nats.Conn) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	count := 0
	err := withView(ctx, nc, func(ctx context.Context, js jetstream.JetStream, view *record.View) error {
		live, err := liveOf(ctx, js, view)
		if err != nil {
			return err
		}
		count = len(live)
		for _, sb := range live {
			msg, err := bus.NewMsg(ctx, subject.Command(sb.GetTenant(), subject.VerbTerminate, rand.Text()),
				&siroccov1.TerminateSandboxRequest{Id: sb.GetId(), Reason: "the platform of this machine is taken down"})
			if err != nil {
				return err
			}
			if _, err := js.PublishMsg(ctx, msg); err != nil {
				return fmt.Errorf("end sandbox %s: %w", sb.GetId(), err)
			}
		}
		for _, sb := range live {
			if _, err := view.Await(ctx, sb.GetId(), sb, func(sb *siroccov1.Sandbox) bool { return sb.GetEnd() != nil }); err != nil {
				return fmt.Errorf("wait for the end of sandbox %s: %w", sb.GetId(), err)
			}
		}
		return nil
	})
	return count, err
}

// Process returns the process id of the platform that runs with this folder. The
// error says that none does.
func Process(data string) (pid int, err error) {
	lock := flock.New(lockFile(data))
	free, err := lock.TryRLock()
	if err != nil {
		return 0, fmt.Errorf("look at %s (was it ever used by `sirocco up`, and are you root?): %w", data, err)
	}
	if free {
		_ = lock.Unlock()
		return 0, fmt.Errorf("no `sirocco up` runs with %s: if sandboxes live on there, start it once more and call down then", data)
	}
	text, err := readSecret(pidFile(data))
	if err != nil {
		return 0, fmt.Errorf("find the process: %w", err)
	}
	if pid, err = strconv.Atoi(text); err != nil {
		return 0, fmt.Errorf("find the process: %s holds %q", pidFile(data), text)
	}
	return pid, nil
}

// empty ends every sandbox of one platform and returns how many.
func empty(ctx context.Context, home string) (int, error) {
	access, err := BusAccess(home)
	if err != nil {
		return 0, err
	}
	cctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	nc, err := access.Connect(cctx, "cli", slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	return StopSandboxes(ctx, nc)
}

// Down ends every sandbox of the platform that runs with this folder, and the
// platform. It returns a sentence about what it did.
func Down(ctx context.Context, data string) (string, error) {
	pid, err := Process(data)
	if err != nil {
		return "", err
	}
	count := 0
	for _, home := range Homes(data) {
		n, err := empty(ctx, home)
		if err != nil {
			return "", err
		}
		count += n
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return "", fmt.Errorf("end process %d: %w", pid, err)
	}
	if err := process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return "", fmt.Errorf("end process %d: %w", pid, err)
	}
	wctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	lock := flock.New(lockFile(data))
	if _, err := lock.TryRLockContext(wctx, 50*time.Millisecond); err != nil {
		return "", fmt.Errorf("wait for process %d to end: %w", pid, err)
	}
	_ = lock.Unlock()
	return fmt.Sprintf("%d sandboxes ended, and the platform with them", count), nil
}
