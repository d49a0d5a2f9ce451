package link

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the longest path of a socket, without the zero at its end.
const maxSocketPath = len(unix.RawSockaddrUnix{}.Path) - 1

// ErrLongPath says that a socket can't be opened because its path would be
// longer than the system allows.
var ErrLongPath = errors.New("link: the path of the socket would be too long")

// MachineID tells machines, and their boots, apart. Containers of one machine
// have the same.
func MachineID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the machine's boot id: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// ListenLocal opens a socket in dir that only this process's own user can reach;
// Serve needs no TLS there, and its address is what Dialer.Local takes. Dir is for
// this alone: what an earlier process left in it is removed. The name is a new one
// each time, so that a path leads to this process or nowhere, also where another
// container has the same folders. It returns ErrLongPath when dir is too deep.
func ListenLocal(dir string) (net.Listener, error) {
	path := filepath.Join(dir, rand.Text()[:16])
	if len(path) > maxSocketPath {
		return nil, ErrLongPath
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("open the link's socket: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the link's socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the link's socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("open the link's socket: %w", err), listener.Close())
	}
	return listener, nil
}

// welcome is what an agent says to a peer that it serves without TLS. Until the
// dialer has it, the agent may still refuse, or hang.
const welcome = 'w'

// admit checks the peer of a connection to a local socket and says so, or closes
// the connection. own is the user that the peer must have.
func admit(ctx context.Context, conn *net.UnixConn, own uint32) (net.Conn, error) {
	return exchange(ctx, conn, own, func() error {
		_, err := conn.Write([]byte{welcome})
		return err
	})
}

// dialLocal connects to an agent's local socket. It believes nobody but a process
// of the user own.
func dialLocal(ctx context.Context, path string, own uint32) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return exchange(ctx, conn.(*net.UnixConn), own, func() error { //nolint:errcheck // the network is unix
		var said [1]byte
		if _, err := conn.Read(said[:]); err != nil {
			return fmt.Errorf("it does not let us in: %w", err)
		}
		if said[0] != welcome {
			return errors.New("it is no agent")
		}
		return nil
	})
}

// exchange checks the peer and then does its part of the welcome; it closes the
// connection when either fails or ctx ends.
func exchange(ctx context.Context, conn *net.UnixConn, own uint32, welcome func() error) (net.Conn, error) {
	peer, err := peerUser(conn)
	if err == nil && peer != own {
		err = fmt.Errorf("the peer is user %d, want %d", peer, own)
	}
	if err == nil {
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		err = welcome()
		if !stop() && err == nil {
			err = ctx.Err()
		}
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// ownUser is the user whom both ends of a local socket must have.
func ownUser() uint32 { return uint32(os.Geteuid()) } //nolint:gosec // users are 32 bits

// peerUser is the user of the process at the other end, as it was when that
// process connected, or began to listen. The kernel says it, not the peer.
func peerUser(conn syscall.Conn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("look at the peer: %w", err)
	}
	var peer *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) //nolint:gosec // a descriptor
	}); cerr != nil || err != nil {
		return 0, fmt.Errorf("look at the peer: %w", errors.Join(cerr, err))
	}
	return peer.Uid, nil
}
