package gvisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/starter"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"
)

// streamBuffer is the size of each direction's buffer between this program and
// gVisor, in bytes.
const streamBuffer = 512 << 10

// maxDials is how many Dials of one sandbox ask gVisor at a time. Its control
// socket lets 16 callers wait and refuses the next, so that a burst of clients
// has to wait here; one Dial takes less than a millisecond.
const maxDials = 8

// Dial implements runtime.Sandbox.
//
// One end of a socket pair goes to gVisor, which connects inside and copies. Each
// direction ends for itself (see package runscbuild), so that CloseWrite is a half
// close on both ends.
func (s *Sandbox) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.awaitResume(ctx); err != nil {
		return nil, fmt.Errorf("dial port %d of sandbox %s: %w", port, s.id, err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("dial port %d of sandbox %s: %w", port, s.id, err)
	}
	for _, fd := range fds {
		// More than the system's maximum takes a right that root may lack; it is
		// only for speed.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, streamBuffer)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "sandbox"), os.NewFile(uintptr(fds[1]), "sandbox")
	defer ours.Close()
	defer theirs.Close()
	if err := s.forward(ctx, port, theirs); err != nil {
		return nil, fmt.Errorf("dial port %d of sandbox %s: %w", port, s.id, err)
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("dial port %d of sandbox %s: %w", port, s.id, err)
	}
	return conn, nil
}

// forward hands theirs to gVisor and returns when it is connected inside.
func (s *Sandbox) forward(ctx context.Context, port uint16, theirs *os.File) error {
	select {
	case s.dials <- struct{}{}:
		defer func() { <-s.dials }()
	case <-ctx.Done():
		return ctx.Err()
	}
	// The call's own type carries the file in a field that is not encoded.
	err := call(ctx, s.control, boot.ContMgrPortForward,
		&boot.PortForwardOpts{ContainerID: starter.ContainerID, Port: port}, []*os.File{theirs}, nil)
	if err != nil && strings.Contains(err.Error(), "connection was refused") {
		return runtime.ErrRefused
	}
	return unanswered(ctx, err)
}

// unanswered tells a call's end by ctx, and that nobody answered, from an answer.
func unanswered(ctx context.Context, err error) error {
	var remote urpc.RemoteError
	var slow net.Error
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &slow) && slow.Timeout():
		return context.DeadlineExceeded // that of ctx, which a dial may notice first
	case errors.As(err, &remote):
		return err
	}
	// Nobody answers, or no longer: the sandbox has ended.
	return fmt.Errorf("%w: %v", runtime.ErrNotFound, err)
}

// rootfsError marks what gVisor says about a root file system that it can't use.
func rootfsError(err error) error {
	msg := err.Error()
	for _, sign := range []string{"mounting root", "erofs", "failed to load", "finding filename", "error finding executable", "no such file"} {
		if strings.Contains(msg, sign) {
			return fmt.Errorf("%w: %v", runtime.ErrRootfs, err)
		}
	}
	return err
}
