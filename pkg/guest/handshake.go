package guest

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHandshake: the other side does not know the secret, or speaks another
// protocol.
var ErrHandshake = errors.New("guest: handshake refused")

const nonceSize = 32

type hello [4 + nonceSize]byte

func newHello() (hello, error) {
	h := hello{'S', 'R', 'G', Version}
	for at := 4; at < len(h); {
		n, err := unix.Getrandom(h[at:], 0)
		if err != nil && err != unix.EINTR {
			return h, err
		}
		at += max(n, 0)
	}
	return h, nil
}

func (h *hello) check() error {
	if h[0] != 'S' || h[1] != 'R' || h[2] != 'G' || h[3] != Version {
		return ErrHandshake
	}
	return nil
}

func proof(secret []byte, role string, client, guest *hello) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(role))
	mac.Write(client[4:])
	mac.Write(guest[4:])
	return mac.Sum(nil)
}

// greetGuest is the client's side of the handshake.
func greetGuest(conn net.Conn, secret []byte) error {
	ours, err := newHello()
	if err != nil {
		return err
	}
	if _, err := conn.Write(ours[:]); err != nil {
		return err
	}
	var answer [len(ours) + sha256.Size]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	theirs := hello(answer[:len(ours)])
	if err := theirs.check(); err != nil {
		return err
	}
	if !hmac.Equal(answer[len(ours):], proof(secret, "guest", &ours, &theirs)) {
		return ErrHandshake
	}
	_, err = conn.Write(proof(secret, "client", &ours, &theirs))
	return err
}

// greetClient is the guest's side of the handshake, limited in time.
func greetClient(conn net.Conn, secret []byte) error {
	if err := conn.SetDeadline(time.Now().Add(HandshakeTimeout)); err != nil {
		return err
	}
	var theirs hello
	if _, err := io.ReadFull(conn, theirs[:]); err != nil {
		return err
	}
	if err := theirs.check(); err != nil {
		return err
	}
	ours, err := newHello()
	if err != nil {
		return err
	}
	if _, err := conn.Write(append(ours[:], proof(secret, "guest", &theirs, &ours)...)); err != nil {
		return err
	}
	var got [sha256.Size]byte
	if _, err := io.ReadFull(conn, got[:]); err != nil {
		return err
	}
	if !hmac.Equal(got[:], proof(secret, "client", &theirs, &ours)) {
		return ErrHandshake
	}
	return conn.SetDeadline(time.Time{})
}
