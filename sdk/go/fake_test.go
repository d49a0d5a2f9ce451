package sirocco_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// fake answers as an api and as an agent whose connections break.
type fake struct {
	url string

	mu sync.Mutex
	// keys are the idempotency keys of creates that arrived.
	keys []string
	// outages is how many more calls find the platform unavailable.
	outages int
	// output is what the process writes; a connection carries at most piece
	// bytes of it and then breaks.
	output []byte
	piece  int
	// attached are the offsets from which output was asked for.
	attached []int64
	input    bytes.Buffer
	closed   bool
	inputs   int
	tokens   int
	tokenTTL time.Duration
	revoked  map[string]bool
	files    map[string][]byte
	watched  []uint64
	cursors  []string
}

func newFake(t *testing.T) (*fake, *sirocco.Client) {
	t.Helper()
	f := &fake{tokenTTL: time.Hour, revoked: map[string]bool{}, files: map[string][]byte{}}
	mux := http.NewServeMux()
	mux.Handle(siroccov1connect.NewSandboxServiceHandler(sandboxes{fake: f}))
	mux.Handle(siroccov1connect.NewExecServiceHandler(execs{fake: f}))
	mux.Handle(siroccov1connect.NewFileServiceHandler(files{fake: f}))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	f.url = server.URL
	c, err := sirocco.New(sirocco.Config{API: server.URL, Key: "sk_test", Resume: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return f, c
}

func fault(code connect.Code, detail *siroccov1.ErrorDetail) error {
	err := connect.NewError(code, http.ErrAbortHandler)
	d, derr := connect.NewErrorDetail(detail)
	if derr != nil {
		return derr
	}
	err.AddDetail(d)
	return err
}

func unavailable() error {
	return fault(connect.CodeUnavailable, &siroccov1.ErrorDetail{
		Code: "unavailable", Message: "the bus is away", RetryAfter: durationpb.New(time.Millisecond),
	})
}

type sandboxes struct {
	siroccov1connect.UnimplementedSandboxServiceHandler
	*fake
}

func (f sandboxes) token(id string) *siroccov1.SandboxToken {
	f.tokens++
	return &siroccov1.SandboxToken{
		Token: "t" + string(rune('0'+f.tokens)) + id, DataUrl: f.url, ExpiresAt: timestamppb.New(time.Now().Add(f.tokenTTL)),
	}
}

func (f sandboxes) Create(_ context.Context, req *connect.Request[siroccov1.CreateSandboxRequest]) (*connect.Response[siroccov1.CreateSandboxResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keys = append(f.keys, req.Msg.GetIdempotencyKey())
	if f.outages > 0 {
		f.outages--
		return nil, unavailable()
	}
	if req.Msg.GetResources().GetMemoryLimitBytes() < 0 {
		return nil, fault(connect.CodeInvalidArgument, &siroccov1.ErrorDetail{
			Code: "invalid_argument", Field: "resources.memory_limit_bytes", Message: "it is negative",
		})
	}
	return connect.NewResponse(&siroccov1.CreateSandboxResponse{
		Sandbox: &siroccov1.Sandbox{Id: "sb-1", State: siroccov1.State_STATE_RUNNING}, Token: f.token("sb-1"),
	}), nil
}

func (f sandboxes) CreateToken(_ context.Context, req *connect.Request[siroccov1.CreateTokenRequest]) (*connect.Response[siroccov1.SandboxToken], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if req.Header().Get("Authorization") != "Bearer sk_test" {
		return nil, connect.NewError(connect.CodeUnauthenticated, http.ErrNoCookie)
	}
	return connect.NewResponse(f.token(req.Msg.GetId())), nil
}

func (f sandboxes) List(_ context.Context, req *connect.Request[siroccov1.ListSandboxesRequest]) (*connect.Response[siroccov1.ListSandboxesResponse], error) {
	if req.Msg.GetPageToken() == "" {
		return connect.NewResponse(&siroccov1.ListSandboxesResponse{Sandboxes: []*siroccov1.Sandbox{{Id: "sb-1"}, {Id: "sb-2"}}, NextPageToken: "2"}), nil
	}
	return connect.NewResponse(&siroccov1.ListSandboxesResponse{Sandboxes: []*siroccov1.Sandbox{{Id: "sb-3"}}}), nil
}

// Watch sends two events and breaks; the third connection ends with an error
// that does not pass.
func (f sandboxes) Watch(_ context.Context, req *connect.Request[siroccov1.WatchSandboxesRequest], s *connect.ServerStream[siroccov1.SandboxEvent]) error {
	f.mu.Lock()
	f.watched = append(f.watched, req.Msg.GetFromSequence())
	f.cursors = append(f.cursors, req.Msg.GetCursor())
	n := len(f.watched)
	f.mu.Unlock()
	if n == 3 {
		return fault(connect.CodePermissionDenied, &siroccov1.ErrorDetail{Code: "permission_denied"})
	}
	first := max(req.Msg.GetFromSequence(), 7)
	for i := range uint64(2) {
		event := &siroccov1.SandboxEvent{Sequence: first + i}
		if req.Msg.GetId() == "far" { // one that several regions tell of
			event.Cursor = fmt.Sprintf("eu:7,us:%d", n)
		}
		if err := s.Send(event); err != nil {
			return err
		}
	}
	panic(http.ErrAbortHandler)
}

type execs struct {
	siroccov1connect.UnimplementedExecServiceHandler
	*fake
}

func (f execs) allowed(h http.Header) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if token := h.Get("Authorization"); token == "" || f.revoked[token] {
		return fault(connect.CodeUnauthenticated, &siroccov1.ErrorDetail{Code: "unauthenticated", Message: "the token has expired"})
	}
	return nil
}

func (f execs) Start(_ context.Context, req *connect.Request[siroccov1.StartExecRequest]) (*connect.Response[siroccov1.Exec], error) {
	if err := f.allowed(req.Header()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&siroccov1.Exec{Id: req.Msg.GetExecId()}), nil
}

func (f execs) Attach(_ context.Context, req *connect.Request[siroccov1.AttachExecRequest], s *connect.ServerStream[siroccov1.ExecOutput]) error {
	if err := f.allowed(req.Header()); err != nil {
		return err
	}
	f.mu.Lock()
	at := req.Msg.GetStdoutOffset()
	f.attached = append(f.attached, at)
	// A resend may overlap what the client has; that must do no harm.
	from := max(at-2, 0)
	piece := f.output[from:min(int(at)+f.piece, len(f.output))]
	done := int(from)+len(piece) == len(f.output)
	f.mu.Unlock()
	if err := s.Send(&siroccov1.ExecOutput{Item: &siroccov1.ExecOutput_Stdout{Stdout: &siroccov1.OutputChunk{Offset: from, Data: piece}}}); err != nil {
		return err
	}
	if !done {
		panic(http.ErrAbortHandler)
	}
	return s.Send(&siroccov1.ExecOutput{Item: &siroccov1.ExecOutput_End{End: &siroccov1.ExecEnd{ExitCode: 7}}})
}

// Stdin takes at most 5 bytes of a message, and every second answer is lost.
func (f execs) Stdin(_ context.Context, req *connect.Request[siroccov1.ExecStdinRequest]) (*connect.Response[siroccov1.ExecStdinResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inputs++
	data := req.Msg.GetData()
	data = data[min(int64(f.input.Len())-req.Msg.GetOffset(), int64(len(data))):]
	whole := len(data) <= 5
	f.input.Write(data[:min(5, len(data))])
	f.closed = f.closed || whole && req.Msg.GetClose()
	if f.inputs%2 == 0 {
		return nil, unavailable()
	}
	return connect.NewResponse(&siroccov1.ExecStdinResponse{Offset: int64(f.input.Len())}), nil
}

type files struct {
	siroccov1connect.UnimplementedFileServiceHandler
	*fake
}

func (f files) Write(_ context.Context, s *connect.ClientStream[siroccov1.WriteFileRequest]) (*connect.Response[siroccov1.FileInfo], error) {
	var path string
	var data []byte
	for s.Receive() {
		if path == "" {
			path = s.Msg().GetPath()
		}
		data = append(data, s.Msg().GetBody().GetData()...)
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files[path] = data
	return connect.NewResponse(&siroccov1.FileInfo{Path: path, Size: int64(len(data))}), nil
}

func (f files) Read(_ context.Context, req *connect.Request[siroccov1.ReadFileRequest], s *connect.ServerStream[httpbody.HttpBody]) error {
	f.mu.Lock()
	data, ok := f.files[req.Msg.GetPath()]
	f.mu.Unlock()
	if !ok {
		return fault(connect.CodeNotFound, &siroccov1.ErrorDetail{Code: "not_found", Message: "no such file"})
	}
	for len(data) > 0 {
		n := min(len(data), 1000)
		if err := s.Send(&httpbody.HttpBody{Data: data[:n]}); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}
