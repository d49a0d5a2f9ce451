package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"github.com/sirocco-run/sirocco/proto/gen/sirocco/v1/siroccov1connect"
	"github.com/sirocco-run/sirocco/services/sirocco/cli"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	id  = "sb-06efxypt7nrtx3mc81sgr4w2xm"
	key = "sk_test"
)

// platform plays a whole Sirocco with one sandbox.
type platform struct {
	url string

	mu         sync.Mutex
	created    *siroccov1.CreateSandboxRequest
	terminated []*siroccov1.TerminateSandboxRequest
	// fails is what a create ends with.
	fails *siroccov1.End
	files map[string][]byte
	exec  *siroccov1.StartExecRequest
	// pool is what was last declared.
	pool *siroccov1.SetPoolRequest
	// quota is what was last set.
	quota *siroccov1.SetQuotaRequest
	// looks is how often somebody looked how far a drain is.
	looks int
	// evacuation is what was last ordered.
	evacuation *siroccov1.Evacuation
	// gone makes the sandbox end under its execs.
	gone *siroccov1.End
	// evictAt is when it is to be evicted.
	evictAt time.Time
	// lost is what is said of the region that is away.
	lost *siroccov1.RegionLoss
}

func newPlatform(t *testing.T) *platform {
	t.Helper()
	p := &platform{files: map[string][]byte{}}
	mux := http.NewServeMux()
	mux.Handle(siroccov1connect.NewSandboxServiceHandler(sandboxes{platform: p}))
	mux.Handle(siroccov1connect.NewExecServiceHandler(execs{platform: p}))
	mux.Handle(siroccov1connect.NewFileServiceHandler(files{platform: p}))
	mux.Handle(siroccov1connect.NewLogServiceHandler(logs{platform: p}))
	mux.Handle(siroccov1connect.NewTunnelServiceHandler(tunnels{platform: p}))
	mux.Handle(siroccov1connect.NewNodeServiceHandler(nodes{platform: p}))
	mux.Handle(siroccov1connect.NewRegionServiceHandler(regions{platform: p}))
	mux.Handle(siroccov1connect.NewPoolServiceHandler(pools{platform: p}))
	mux.Handle(siroccov1connect.NewQuotaServiceHandler(quotas{platform: p}))
	mux.Handle(siroccov1connect.NewImageServiceHandler(images{platform: p}))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

// result is what one command line did.
type result struct {
	code     int
	out, err string
}

// sirocco runs a command line against the platform.
func (p *platform) sirocco(t *testing.T, input string, args ...string) result {
	t.Helper()
	env := map[string]string{cli.EnvAPI: p.url, cli.EnvAPIKey: key, "COLOR": "blue", "SIROCCO_CONFIG": filepath.Join(t.TempDir(), "none.json")}
	return run(t, env, input, args...)
}

func run(t *testing.T, env map[string]string, input string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	code := cli.Main(t.Context(), cli.Shell{
		In: strings.NewReader(input), Out: &out, Err: &errs, Getenv: func(k string) string { return env[k] }, Home: t.TempDir(),
	}, args)
	return result{code, out.String(), errs.String()}
}

func record() *siroccov1.Sandbox {
	accepted := time.Now().Add(-90 * time.Second)
	return &siroccov1.Sandbox{
		Id: id, Tenant: "default", State: siroccov1.State_STATE_RUNNING,
		Spec: &siroccov1.CreateSandboxRequest{
			Image: "base", Name: "web", Tags: map[string]string{"team": "red", "app": "shop"}, Command: []string{"sleep", "9"},
			Resources: &siroccov1.Resources{CpuLimitMillis: 500, MemoryLimitBytes: 256 << 20, DiskLimitBytes: 1 << 30, PidsLimit: 64},
		},
		Desired:   &siroccov1.Desired{Deadline: timestamppb.New(accepted.Add(time.Hour))},
		Placement: &siroccov1.Placement{Region: "local", Node: "node-1", Epoch: 1},
		History:   []*siroccov1.Transition{{State: siroccov1.State_STATE_ACCEPTED, At: timestamppb.New(accepted)}},
		Tunnels:   []*siroccov1.Tunnel{{Port: 8000, Protocol: siroccov1.Protocol_PROTOCOL_HTTPS, Url: "https://8000-" + id + ".sandbox.localhost:7443/"}},
	}
}

type sandboxes struct {
	siroccov1connect.UnimplementedSandboxServiceHandler
	*platform
}

func allowed(h http.Header) error {
	if h.Get("Authorization") != "Bearer "+key {
		return fault.Connect(fault.New(fault.Unauthenticated, "the API key is not known"))
	}
	return nil
}

func (p sandboxes) token() *siroccov1.SandboxToken {
	return &siroccov1.SandboxToken{Token: "tok", DataUrl: p.url, ExpiresAt: timestamppb.New(time.Date(2100, 1, 2, 3, 4, 5, 0, time.UTC))}
}

func (p sandboxes) Create(_ context.Context, req *connect.Request[siroccov1.CreateSandboxRequest]) (*connect.Response[siroccov1.CreateSandboxResponse], error) {
	if err := allowed(req.Header()); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.created = req.Msg
	if req.Msg.GetResources().GetMemoryLimitBytes() == 1 {
		return nil, fault.Connect(fault.Invalid("resources.memory_limit_bytes", "1 is below the least, 25165824"))
	}
	if req.Msg.GetImage() == "full" {
		return nil, fault.Connect(&fault.Fault{Code: fault.NoCapacity, Scope: "region", Message: "no node fits: memory on 3", RetryAfter: 2 * time.Second})
	}
	sb := record()
	if p.fails != nil {
		sb.State, sb.End = siroccov1.State_STATE_FAILED, p.fails
	}
	return connect.NewResponse(&siroccov1.CreateSandboxResponse{Sandbox: sb, Token: p.token()}), nil
}

func (p sandboxes) Get(_ context.Context, req *connect.Request[siroccov1.GetSandboxRequest]) (*connect.Response[siroccov1.Sandbox], error) {
	if req.Msg.GetId() != id && req.Msg.GetId() != "web" {
		return nil, fault.Connect(fault.New(fault.NotFound, "no sandbox %s", req.Msg.GetId()))
	}
	sb := record()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone != nil {
		sb.State, sb.End = siroccov1.State_STATE_STOPPED, p.gone
	}
	if !p.evictAt.IsZero() {
		sb.Desired.EvictAt = timestamppb.New(p.evictAt)
	}
	sb.Lost = p.lost
	return connect.NewResponse(sb), nil
}

func (p sandboxes) List(_ context.Context, req *connect.Request[siroccov1.ListSandboxesRequest]) (*connect.Response[siroccov1.ListSandboxesResponse], error) {
	if err := allowed(req.Header()); err != nil {
		return nil, err
	}
	list := []*siroccov1.Sandbox{record()}
	list[0].Lost = p.lost
	if req.Msg.GetAll() {
		ended := record()
		ended.Spec.Name, ended.Spec.Tags = "", nil
		ended.State, ended.End = siroccov1.State_STATE_STOPPED, &siroccov1.End{Cause: siroccov1.Cause_CAUSE_OOM}
		list = append(list, ended)
	}
	return connect.NewResponse(&siroccov1.ListSandboxesResponse{Sandboxes: list}), nil
}

func (p sandboxes) Terminate(_ context.Context, req *connect.Request[siroccov1.TerminateSandboxRequest]) (*connect.Response[siroccov1.Sandbox], error) {
	if req.Msg.GetId() == "missing" {
		return nil, fault.Connect(fault.New(fault.NotFound, "no sandbox missing"))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.terminated = append(p.terminated, req.Msg)
	sb := record()
	if req.Msg.GetReason() == "measured" { // a measurement looks at how it ended
		sb.State, sb.End = siroccov1.State_STATE_STOPPED, &siroccov1.End{Cause: siroccov1.Cause_CAUSE_USER}
	}
	return connect.NewResponse(sb), nil
}

func (p sandboxes) Extend(context.Context, *connect.Request[siroccov1.ExtendSandboxRequest]) (*connect.Response[siroccov1.Sandbox], error) {
	sb := record()
	sb.Desired.Deadline = timestamppb.New(time.Date(2100, 1, 2, 3, 4, 5, 0, time.UTC))
	return connect.NewResponse(sb), nil
}

func (p sandboxes) SetTags(_ context.Context, req *connect.Request[siroccov1.SetTagsRequest]) (*connect.Response[siroccov1.Sandbox], error) {
	sb := record()
	sb.Spec.Tags = req.Msg.GetTags()
	return connect.NewResponse(sb), nil
}

func (p sandboxes) CreateToken(context.Context, *connect.Request[siroccov1.CreateTokenRequest]) (*connect.Response[siroccov1.SandboxToken], error) {
	return connect.NewResponse(p.token()), nil
}

func (p sandboxes) Watch(ctx context.Context, req *connect.Request[siroccov1.WatchSandboxesRequest], s *connect.ServerStream[siroccov1.SandboxEvent]) error {
	at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	ended := record()
	ended.State, ended.End = siroccov1.State_STATE_STOPPED, &siroccov1.End{Cause: siroccov1.Cause_CAUSE_EXITED, ExitCode: proto.Int32(3)}
	if p.lost != nil {
		if from := req.Msg.GetCursor(); from != "eu:1,us:1" {
			return fault.Connect(fault.New(fault.InvalidArgument, "asked from %q", from))
		}
		for _, e := range []*siroccov1.SandboxEvent{
			{Region: "us", Away: p.lost, At: at, Cursor: "eu:1,us:1", Sequence: 1}, {Region: "us", Back: "us", At: at, Cursor: "eu:1,us:1", Sequence: 1},
			{Region: "us", Sandbox: record(), At: at, Cursor: "eu:1,us:2", Sequence: 1},
		} {
			if err := s.Send(e); err != nil {
				return err
			}
		}
	}
	for i, e := range []*siroccov1.SandboxEvent{
		{Sandbox: record()}, {Sandbox: ended},
		{Rejected: &siroccov1.RejectedCommand{Key: "k1", Verb: "create", Code: "invalid_argument", Message: "no JSON"}},
	} {
		e.Sequence, e.At = uint64(i+1), at
		if e.GetSequence() < req.Msg.GetFromSequence() {
			continue
		}
		if err := s.Send(e); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

type execs struct {
	siroccov1connect.UnimplementedExecServiceHandler
	*platform
}

func (p execs) Start(_ context.Context, req *connect.Request[siroccov1.StartExecRequest]) (*connect.Response[siroccov1.Exec], error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exec = req.Msg
	switch req.Msg.GetCommand()[0] {
	case "nosuch":
		return nil, fault.Connect(fault.Invalid("command", "nosuch not found in PATH"))
	case "nowhere":
		return nil, fault.Connect(fault.Invalid("workdir", "no folder /nowhere to work in"))
	case "noexec":
		denied := fault.New(fault.PermissionDenied, "noexec is not executable")
		denied.Field = "command"
		return nil, fault.Connect(denied)
	case "closed":
		denied := fault.New(fault.PermissionDenied, "user may not enter /closed")
		denied.Field = "workdir"
		return nil, fault.Connect(denied)
	case "odd":
		return nil, fault.Connect(fault.Invalid("exec_id", "odd"))
	}
	return connect.NewResponse(&siroccov1.Exec{Id: req.Msg.GetExecId()}), nil
}

// Attach plays a few programs: "exit N", "echo …", "both", "cat".
func (p execs) Attach(ctx context.Context, req *connect.Request[siroccov1.AttachExecRequest], s *connect.ServerStream[siroccov1.ExecOutput]) error {
	if start := req.Msg.GetStart(); start != nil {
		if _, err := p.Start(ctx, connect.NewRequest(start)); err != nil {
			return err
		}
	}
	p.mu.Lock()
	gone, command := p.gone, p.exec.GetCommand()
	p.mu.Unlock()
	if gone != nil {
		return fault.Connect(fault.New(fault.NotFound, "no sandbox"))
	}
	send := func(stderr bool, text string) error {
		chunk := &siroccov1.OutputChunk{Data: []byte(text)}
		if stderr {
			return s.Send(&siroccov1.ExecOutput{Item: &siroccov1.ExecOutput_Stderr{Stderr: chunk}})
		}
		return s.Send(&siroccov1.ExecOutput{Item: &siroccov1.ExecOutput_Stdout{Stdout: chunk}})
	}
	var code int32
	var err error
	switch {
	case req.Msg.GetExecId() == "main":
		err = send(false, "from main\n")
	case len(command) == 0:
	case command[0] == "echo":
		err = send(false, strings.Join(command[1:], " ")+"\n")
	case command[0] == "exit":
		_, err = fmt.Sscan(command[1], &code)
	case command[0] == "both":
		err = errors.Join(send(false, "out\n"), send(true, "err\n"))
	}
	if err != nil {
		return err
	}
	return s.Send(&siroccov1.ExecOutput{Item: &siroccov1.ExecOutput_End{End: &siroccov1.ExecEnd{ExitCode: code}}})
}

func (p execs) Stdin(_ context.Context, req *connect.Request[siroccov1.ExecStdinRequest]) (*connect.Response[siroccov1.ExecStdinResponse], error) {
	return connect.NewResponse(&siroccov1.ExecStdinResponse{Offset: req.Msg.GetOffset() + int64(len(req.Msg.GetData()))}), nil
}

func (p execs) List(context.Context, *connect.Request[siroccov1.ListExecsRequest]) (*connect.Response[siroccov1.ListExecsResponse], error) {
	at := timestamppb.New(time.Now().Add(-5*time.Minute - 10*time.Second))
	return connect.NewResponse(&siroccov1.ListExecsResponse{Execs: []*siroccov1.Exec{
		{Id: "main", Pid: 2, Command: []string{"sleep", "9"}, StartedAt: at, StdoutBytes: 2048},
		{Id: "e1", Pid: 7, Command: []string{"false"}, StartedAt: at, End: &siroccov1.ExecEnd{ExitCode: 1}},
	}}), nil
}

type files struct {
	siroccov1connect.UnimplementedFileServiceHandler
	*platform
}

func (p files) Write(_ context.Context, s *connect.ClientStream[siroccov1.WriteFileRequest]) (*connect.Response[siroccov1.FileInfo], error) {
	var name string
	var data []byte
	for s.Receive() {
		if name == "" {
			name = s.Msg().GetPath()
		}
		data = append(data, s.Msg().GetBody().GetData()...)
	}
	if s.Err() != nil {
		return nil, s.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.platform.files[name] = data
	return connect.NewResponse(&siroccov1.FileInfo{Path: name}), nil
}

func (p files) Read(_ context.Context, req *connect.Request[siroccov1.ReadFileRequest], s *connect.ServerStream[httpbody.HttpBody]) error {
	p.mu.Lock()
	data, ok := p.platform.files[req.Msg.GetPath()]
	p.mu.Unlock()
	if !ok {
		return fault.Connect(fault.New(fault.NotFound, "no file %s", req.Msg.GetPath()))
	}
	return s.Send(&httpbody.HttpBody{Data: data})
}

func (p files) Stat(_ context.Context, req *connect.Request[siroccov1.StatFileRequest]) (*connect.Response[siroccov1.FileInfo], error) {
	info := p.stat(req.Msg.GetPath())
	if info == nil {
		return nil, fault.Connect(fault.New(fault.NotFound, "no file %s", req.Msg.GetPath()))
	}
	return connect.NewResponse(info), nil
}

func (p files) stat(name string) *siroccov1.FileInfo {
	p.mu.Lock()
	defer p.mu.Unlock()
	if data, ok := p.platform.files[name]; ok {
		return &siroccov1.FileInfo{Path: name, Type: siroccov1.FileType_FILE_TYPE_REGULAR, Size: int64(len(data)), Mode: 0o640}
	}
	for file := range p.platform.files {
		if strings.HasPrefix(file, name+"/") {
			return &siroccov1.FileInfo{Path: name, Type: siroccov1.FileType_FILE_TYPE_DIRECTORY, Mode: 0o755}
		}
	}
	return nil
}

func (p files) MakeDir(_ context.Context, req *connect.Request[siroccov1.MakeDirRequest]) (*connect.Response[siroccov1.FileInfo], error) {
	return connect.NewResponse(&siroccov1.FileInfo{Path: req.Msg.GetPath()}), nil
}

func (p files) List(_ context.Context, req *connect.Request[siroccov1.ListFilesRequest]) (*connect.Response[siroccov1.ListFilesResponse], error) {
	below := map[string]bool{}
	p.mu.Lock()
	for file := range p.platform.files {
		if rest, ok := strings.CutPrefix(file, req.Msg.GetPath()+"/"); ok {
			first, _, _ := strings.Cut(rest, "/")
			below[path.Join(req.Msg.GetPath(), first)] = true
		}
	}
	p.mu.Unlock()
	resp := &siroccov1.ListFilesResponse{}
	for name := range below {
		resp.Files = append(resp.Files, p.stat(name))
	}
	slices.SortFunc(resp.Files, func(a, b *siroccov1.FileInfo) int { return strings.Compare(a.GetPath(), b.GetPath()) })
	return connect.NewResponse(resp), nil
}

type logs struct {
	siroccov1connect.UnimplementedLogServiceHandler
	*platform
}

func (p logs) Read(_ context.Context, _ *connect.Request[siroccov1.ReadLogsRequest], s *connect.ServerStream[httpbody.HttpBody]) error {
	return errors.Join(s.Send(&httpbody.HttpBody{Data: []byte("one\n")}), s.Send(&httpbody.HttpBody{Data: []byte("two\n")}))
}

type tunnels struct {
	siroccov1connect.UnimplementedTunnelServiceHandler
	*platform
}

func (p tunnels) Open(_ context.Context, req *connect.Request[siroccov1.OpenTunnelRequest]) (*connect.Response[siroccov1.Tunnel], error) {
	return connect.NewResponse(&siroccov1.Tunnel{Port: req.Msg.GetPort().GetPort(), Protocol: req.Msg.GetPort().GetProtocol(), Url: "tcp://sandbox.localhost:20000"}), nil
}

func (p tunnels) Close(context.Context, *connect.Request[siroccov1.CloseTunnelRequest]) (*connect.Response[siroccov1.CloseTunnelResponse], error) {
	return connect.NewResponse(&siroccov1.CloseTunnelResponse{}), nil
}

func (p tunnels) List(context.Context, *connect.Request[siroccov1.ListTunnelsRequest]) (*connect.Response[siroccov1.ListTunnelsResponse], error) {
	return connect.NewResponse(&siroccov1.ListTunnelsResponse{Tunnels: record().GetTunnels()}), nil
}

type nodes struct {
	siroccov1connect.UnimplementedNodeServiceHandler
	*platform
}

func node(cordoned bool) *siroccov1.Node {
	return &siroccov1.Node{
		Name: "node-1", Region: "local", Address: "127.0.0.1:7101", Live: 3, Ready: true, Cordoned: cordoned, Runtime: "gvisor",
		Capacity: &siroccov1.NodeCapacity{CpuMillis: 8000, MemoryBytes: 8 << 30, Sandboxes: 600},
		Used:     &siroccov1.NodeCapacity{CpuMillis: 150, MemoryBytes: 192 << 20, Sandboxes: 3},
	}
}

func (p nodes) List(context.Context, *connect.Request[siroccov1.ListNodesRequest]) (*connect.Response[siroccov1.ListNodesResponse], error) {
	return connect.NewResponse(&siroccov1.ListNodesResponse{Nodes: []*siroccov1.Node{node(false)}}), nil
}

func (p nodes) Cordon(_ context.Context, req *connect.Request[siroccov1.CordonNodeRequest]) (*connect.Response[siroccov1.Node], error) {
	return connect.NewResponse(node(!req.Msg.GetLift())), nil
}

func (p nodes) Drain(_ context.Context, req *connect.Request[siroccov1.DrainNodeRequest]) (*connect.Response[siroccov1.Node], error) {
	if req.Msg.GetName() == "node-2" {
		return connect.NewResponse(node(true)), nil
	}
	return nil, fault.Connect(fault.New(fault.PermissionDenied, "only operators steer nodes"))
}

// GetDrain shows a drain that goes on with each look, with a pause in between.
func (p nodes) GetDrain(context.Context, *connect.Request[siroccov1.GetDrainRequest]) (*connect.Response[siroccov1.Evacuation], error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.looks++
	e := &siroccov1.Evacuation{
		Region: "local", Node: "node-2", Stages: []float64{0.2, 0.6, 1}, Stage: 1, Moved: 1, Here: 2, UnderWay: 1,
		State: siroccov1.EvacuationState_EVACUATION_STATE_MOVING,
	}
	switch {
	case p.looks > 4:
		e.Stage, e.Moved, e.Here, e.UnderWay, e.Failed, e.PauseP99 = 2, 3, 0, 0, 2, durationpb.New(131*time.Millisecond)
		e.State, e.Why = siroccov1.EvacuationState_EVACUATION_STATE_DONE, "3 were moved in 1s"
	case p.looks > 2:
		e.UnderWay, e.Failed, e.PauseP99, e.Pauses = 0, 2, durationpb.New(130*time.Millisecond), 1
		e.State, e.Why = siroccov1.EvacuationState_EVACUATION_STATE_PAUSED, "2 of 3 moves failed"
	}
	return connect.NewResponse(e), nil
}

type regions struct {
	siroccov1connect.UnimplementedRegionServiceHandler
	*platform
}

func (p regions) Evacuate(_ context.Context, req *connect.Request[siroccov1.EvacuateRegionRequest]) (*connect.Response[siroccov1.Evacuation], error) {
	e := &siroccov1.Evacuation{Region: req.Msg.GetRegion(), Stages: []float64{0.2, 0.6, 1}, Stage: 2}
	switch {
	case req.Msg.GetRegion() == "mars":
		return nil, fault.Connect(fault.New(fault.NotFound, "no region mars"))
	case req.Msg.GetCancel():
		e.State = siroccov1.EvacuationState_EVACUATION_STATE_CANCELLING
	case req.Msg.GetOver().AsDuration() == 5*time.Second:
		e.Moved, e.Here, e.PauseP99 = 7, 1, durationpb.New(90*time.Millisecond)
		e.State, e.Why = siroccov1.EvacuationState_EVACUATION_STATE_INCOMPLETE, "1 could not be moved: 1 × it may run in eu only"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.evacuation = e
	return connect.NewResponse(e), nil
}

func (p regions) GetEvacuation(context.Context, *connect.Request[siroccov1.GetEvacuationRequest]) (*connect.Response[siroccov1.Evacuation], error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.evacuation == nil {
		return connect.NewResponse(&siroccov1.Evacuation{Region: "eu", State: siroccov1.EvacuationState_EVACUATION_STATE_CANCELLED}), nil
	}
	return connect.NewResponse(p.evacuation), nil
}

type pools struct {
	siroccov1connect.UnimplementedPoolServiceHandler
	*platform
}

func (p pools) List(context.Context, *connect.Request[siroccov1.ListPoolsRequest]) (*connect.Response[siroccov1.ListPoolsResponse], error) {
	return connect.NewResponse(&siroccov1.ListPoolsResponse{Pools: []*siroccov1.Pool{
		{
			Name: "web", Warm: 8, Max: 64, Key: "00ff", Nodes: []*siroccov1.PoolNode{{Node: "node-1", Ready: 4}, {Node: "node-2", Ready: 1}},
			Template: &siroccov1.Template{
				Image: "host", Resources: &siroccov1.Resources{CpuLimitMillis: 500, MemoryLimitBytes: 1 << 30},
				Network: &siroccov1.NetworkPolicy{Mode: siroccov1.NetworkMode_NETWORK_MODE_ALLOWED, AllowedCidrs: []string{"1.2.3.0/24"}},
			},
		},
		{Key: "11ee", Nodes: []*siroccov1.PoolNode{{Node: "node-1", Ready: 2}}},
	}}), nil
}

func (p pools) Set(_ context.Context, req *connect.Request[siroccov1.SetPoolRequest]) (*connect.Response[siroccov1.Pool], error) {
	if req.Msg.GetWarm() > 10_000 {
		return nil, fault.Connect(fault.Invalid("warm", "%d is out of range: 0 to 10000", req.Msg.GetWarm()))
	}
	p.mu.Lock()
	p.platform.pool = req.Msg
	p.mu.Unlock()
	pool := &siroccov1.Pool{Name: req.Msg.GetName(), Template: proto.CloneOf(req.Msg.GetTemplate()), Warm: req.Msg.GetWarm(), Max: req.Msg.GetMax(), Key: "00ff"}
	if pool.GetTemplate().GetImage() == "" {
		pool.Template.Image = "base"
	}
	return connect.NewResponse(pool), nil
}

func (p pools) Remove(_ context.Context, req *connect.Request[siroccov1.RemovePoolRequest]) (*connect.Response[siroccov1.RemovePoolResponse], error) {
	if req.Msg.GetName() != "web" {
		return nil, fault.Connect(fault.New(fault.NotFound, "no pool %s", req.Msg.GetName()))
	}
	return connect.NewResponse(&siroccov1.RemovePoolResponse{}), nil
}

type quotas struct {
	siroccov1connect.UnimplementedQuotaServiceHandler
	*platform
}

func (p quotas) List(context.Context, *connect.Request[siroccov1.ListQuotasRequest]) (*connect.Response[siroccov1.ListQuotasResponse], error) {
	limits := func() *siroccov1.QuotaLimits {
		return &siroccov1.QuotaLimits{Live: proto.Int32(0), CreateRate: proto.Float64(50), CreateBurst: proto.Int32(500), MemoryBytes: proto.Int64(64 << 30)}
	}
	own := limits()
	own.Live, own.CreateRate = proto.Int32(5), proto.Float64(0.5)
	return connect.NewResponse(&siroccov1.ListQuotasResponse{Quotas: []*siroccov1.Quota{
		{Tenant: "acme", Limits: limits(), Live: 12, MemoryBytes: 3 << 30},
		{Tenant: "trial", Limits: own, Own: &siroccov1.QuotaLimits{Live: own.Live, CreateRate: own.CreateRate}, Live: 1, MemoryBytes: 64 << 20},
	}}), nil
}

func (p quotas) Set(_ context.Context, req *connect.Request[siroccov1.SetQuotaRequest]) (*connect.Response[siroccov1.Quota], error) {
	if req.Msg.GetLimits().GetLive() < 0 {
		return nil, fault.Connect(fault.Invalid("limits.live", "-1 is out of range"))
	}
	p.mu.Lock()
	p.platform.quota = req.Msg
	p.mu.Unlock()
	return connect.NewResponse(&siroccov1.Quota{Tenant: req.Msg.GetTenant(), Own: req.Msg.GetLimits(), Limits: req.Msg.GetLimits()}), nil
}

func (p quotas) Remove(_ context.Context, req *connect.Request[siroccov1.RemoveQuotaRequest]) (*connect.Response[siroccov1.RemoveQuotaResponse], error) {
	if req.Msg.GetTenant() != "trial" {
		return nil, fault.Connect(fault.New(fault.NotFound, "tenant %s has no quota of its own", req.Msg.GetTenant()))
	}
	return connect.NewResponse(&siroccov1.RemoveQuotaResponse{}), nil
}

type images struct {
	siroccov1connect.UnimplementedImageServiceHandler
	*platform
}

func (p images) List(context.Context, *connect.Request[siroccov1.ListImagesRequest]) (*connect.Response[siroccov1.ListImagesResponse], error) {
	return connect.NewResponse(&siroccov1.ListImagesResponse{Images: []*siroccov1.Image{{Name: "base", Source: "builtin", SizeBytes: 3 << 20}}}), nil
}

func (p images) Import(_ context.Context, s *connect.ClientStream[siroccov1.ImportImageRequest]) (*connect.Response[siroccov1.Image], error) {
	image := &siroccov1.Image{Source: "import"}
	for s.Receive() {
		if image.GetName() == "" {
			image.Name = s.Msg().GetName()
		}
		image.SizeBytes += int64(len(s.Msg().GetBody().GetData()))
	}
	return connect.NewResponse(image), s.Err()
}
