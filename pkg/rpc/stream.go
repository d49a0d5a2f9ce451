package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// The transcoder keeps a whole body of REST in memory, in both directions, and
// takes one that breaks off for one that has ended. So what is streamed goes
// past it: it makes the first message, out of the path and the parameters, and
// the bytes of google.api.HttpBody are read from the request, and written to the
// answer, by restConn.

// bodyName is the message that stands for a plain body.
const bodyName protoreflect.FullName = "google.api.HttpBody"

// chunkBytes is how much of an upload one message carries.
const chunkBytes = 64 << 10

// restKey marks the requests of REST, with their writer.
type restKey struct{}

// restWriter returns the writer of a request of REST; nil for RPC.
func restWriter(ctx context.Context) *Writer {
	w, _ := ctx.Value(restKey{}).(*Writer)
	return w
}

// upload is a path of REST whose body is streamed.
type upload struct {
	method   string
	segments []string // "" matches any
	field    protoreflect.Name
}

// uploadsOf finds the calls of a service that take a stream whose messages hold
// the body.
func uploadsOf(path string) ([]upload, error) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.Trim(path, "/")))
	if err != nil {
		return nil, fmt.Errorf("find service %s: %w", path, err)
	}
	service, ok := d.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is no service", path)
	}
	var found []upload
	for i := range service.Methods().Len() {
		m := service.Methods().Get(i)
		rule, _ := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
		if rule == nil || !m.IsStreamingClient() {
			continue
		}
		u := upload{method: http.MethodPost, field: protoreflect.Name(rule.GetBody())}
		template := rule.GetPost()
		if template == "" {
			u.method, template = http.MethodPut, rule.GetPut()
		}
		field := m.Input().Fields().ByName(u.field)
		if template == "" || field == nil || field.Message() == nil || field.Message().FullName() != bodyName {
			return nil, fmt.Errorf("%s takes a stream over REST: want POST or PUT, and as its body a google.api.HttpBody", m.FullName())
		}
		for _, s := range strings.Split(template, "/") {
			if strings.HasPrefix(s, "{") {
				s = ""
			}
			u.segments = append(u.segments, s)
		}
		found = append(found, u)
	}
	return found, nil
}

// upload returns the streamed path that a request is for; nil for none.
func (t *Routes) upload(r *http.Request) *upload {
	have := strings.Split(r.URL.Path, "/")
	for i := range t.uploads {
		if u := &t.uploads[i]; u.method == r.Method && u.matches(have) {
			return u
		}
	}
	return nil
}

func (u *upload) matches(have []string) bool {
	if len(have) != len(u.segments) || have[0] != "" {
		return false
	}
	for i, want := range u.segments[1:] {
		if got := have[i+1]; got == "" || want != "" && want != got {
			return false
		}
	}
	return true
}

func (t *Routes) serveUpload(w *Writer, r *http.Request, u *upload) error {
	if r.Header.Get("Content-Encoding") != "" {
		return fault.Invalid("Content-Encoding", "send the file as it is; it may be packed itself")
	}
	w.upload = &uploading{body: t.contract.paced(w, r), field: u.field}
	r.Body, r.ContentLength = http.NoBody, 0
	t.rest.ServeHTTP(w, r)
	return nil
}

// uploading is the body of an upload under way.
type uploading struct {
	body  io.Reader
	field protoreflect.Name
	begun bool
	chunk []byte
	err   error
}

// next fills m with the next piece.
func (u *uploading) next(m proto.Message) error {
	if u.chunk == nil {
		u.chunk = make([]byte, chunkBytes)
	}
	n := 0
	for n == 0 && u.err == nil {
		n, u.err = u.body.Read(u.chunk)
	}
	if n == 0 {
		if errors.Is(u.err, io.EOF) {
			return io.EOF
		}
		return fault.New(fault.InvalidArgument, "the body ended early or came too slowly: %w", u.err)
	}
	body, ok := m.ProtoReflect().Mutable(m.ProtoReflect().Descriptor().Fields().ByName(u.field)).Message().Interface().(*httpbody.HttpBody)
	if !ok {
		return fault.New(fault.Internal, "%s of %T is no HttpBody", u.field, m)
	}
	body.Data = u.chunk[:n]
	return nil
}

// restConn carries the bytes of a stream of REST. The data of a message that
// was received is valid until the next.
type restConn struct {
	connect.StreamingHandlerConn
	w *Writer
}

// Receive implements connect.StreamingHandlerConn.
func (c *restConn) Receive(m any) error {
	u := c.w.upload
	if u == nil || !u.begun {
		if u != nil {
			u.begun = true
		}
		err := c.StreamingHandlerConn.Receive(m)
		if c.w.refused() {
			return errUnreadable() // to the transcoder, its stream has just ended
		}
		return err
	}
	pm, ok := m.(proto.Message)
	if !ok {
		return fault.New(fault.Internal, "%T is no message", m)
	}
	return u.next(pm)
}

// Send implements connect.StreamingHandlerConn.
func (c *restConn) Send(m any) error {
	body, ok := m.(*httpbody.HttpBody)
	if !ok {
		return c.StreamingHandlerConn.Send(m)
	}
	return c.w.stream(body)
}
