package api

import (
	"io"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// upload returns the name in the first message of an import, and the bytes of
// all of them.
func upload(in *connect.ClientStream[siroccov1.ImportImageRequest]) (name string, body io.Reader, err error) {
	if !in.Receive() {
		if err := in.Err(); err != nil {
			return "", nil, err
		}
		return "", nil, fault.Invalid("name", "the stream is empty")
	}
	return in.Msg().GetName(), &chunks{in: in, rest: in.Msg().GetBody().GetData()}, nil
}

// chunks reads the bodies of a stream's messages one after another.
type chunks struct {
	in   *connect.ClientStream[siroccov1.ImportImageRequest]
	rest []byte
}

// Read implements io.Reader.
func (c *chunks) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if !c.in.Receive() {
			if err := c.in.Err(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		c.rest = c.in.Msg().GetBody().GetData()
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}
