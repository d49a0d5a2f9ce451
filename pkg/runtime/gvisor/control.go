package gvisor

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/urpc"
)

// call makes one call to a sandbox's control server. arg may carry files.
//
// gVisor's client waits in a system call, which takes a thread for as long as the
// call lasts; one of these calls lasts as long as the sandbox. What goes over the
// socket is one JSON value each way.
//
// Errors: urpc.RemoteError is the server's answer; any other means that there was
// none.
func call(ctx context.Context, socket, method string, arg any, files []*os.File, result any) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("call %s: %w", method, err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := roundTrip(c.(*net.UnixConn), method, arg, files, result); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("call %s: %w", method, err)
	}
	return nil
}

func roundTrip(c *net.UnixConn, method string, arg any, files []*os.File, result any) error {
	b, err := json.Marshal(struct {
		Method string `json:"method"`
		Arg    any    `json:"arg"`
	}{method, arg})
	if err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		rights = unix.UnixRights(fds...)
	}
	// The files travel with the first byte.
	n, _, err := c.WriteMsgUnix(b, rights, nil)
	if err != nil {
		return err
	}
	if _, err := c.Write(b[n:]); err != nil {
		return err
	}
	answer := struct {
		Success bool   `json:"success"`
		Err     string `json:"err"`
		Result  any    `json:"result"`
	}{Result: result}
	if err := json.NewDecoder(c).Decode(&answer); err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	if !answer.Success {
		return urpc.RemoteError{Message: answer.Err}
	}
	return nil
}
