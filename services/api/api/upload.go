package api

import (
	"context"
	"io"
	"net/http"
	"strings"

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

const imagesPath = "/v1/images/"

// importPath says whether a request is an import over REST, and its name.
func importPath(r *http.Request) (name string, ok bool) {
	name, ok = strings.CutPrefix(r.URL.Path, imagesPath)
	return name, ok && r.Method == http.MethodPost && name != "" && !strings.Contains(name, "/")
}

// serveImport is Import over REST: the body is the archive. It does not go
// through the transcoder, for which a body that breaks off has just ended.
func (a *API) serveImport(ctx context.Context, w http.ResponseWriter, r *http.Request, c caller, name string) error {
	if r.Header.Get("Content-Encoding") != "" {
		return fault.Invalid("Content-Encoding", "send the archive as it is; it may be a gzip or zstd file itself")
	}
	img, err := a.importImage(ctx, c, name, r.Body)
	if err != nil {
		return err
	}
	body, err := jsonOut.Marshal(img)
	if err != nil {
		return err
	}
	w.Header().Set(contentType, "application/json")
	_, err = w.Write(body)
	return ignoreGone(err)
}
