package agent

import (
	"context"
	"errors"
	"io"
	"mime"
	"path"

	"connectrpc.com/connect"
	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guest"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// fileService implements siroccov1connect.FileServiceHandler.
type fileService struct{ *services }

// readChunk is how much of a file one message carries.
const readChunk = 64 << 10

func (s fileService) Read(ctx context.Context, req *connect.Request[siroccov1.ReadFileRequest], stream *connect.ServerStream[httpbody.HttpBody]) error {
	r := req.Msg
	m, err := s.open(req.Header(), r.GetSandboxId())
	if err != nil {
		return err
	}
	if err := admission.CheckPath("path", r.GetPath(), false); err != nil {
		return err
	}
	if r.GetOffset() < 0 || r.GetLength() < 0 {
		return fault.Invalid("offset", "offset and length are zero or more")
	}
	file, err := call(ctx, m, func(c *guest.Client) (*guest.FileReader, error) {
		return c.ReadFile(ctx, r.GetPath(), r.GetOffset(), r.GetLength())
	})
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	kind := mime.TypeByExtension(path.Ext(r.GetPath()))
	if kind == "" {
		kind = "application/octet-stream"
	}
	if err := stream.Send(&httpbody.HttpBody{ContentType: kind}); err != nil {
		return err
	}
	buf := make([]byte, readChunk)
	for {
		n, err := io.ReadFull(file, buf)
		if n > 0 {
			if serr := stream.Send(&httpbody.HttpBody{Data: buf[:n]}); serr != nil {
				return serr
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return m.guestFault(ctx, err)
		}
	}
}

func (s fileService) Write(ctx context.Context, stream *connect.ClientStream[siroccov1.WriteFileRequest]) (*connect.Response[siroccov1.FileInfo], error) {
	if !stream.Receive() {
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, fault.Invalid("path", "the stream is empty; its first message must name the file")
	}
	first := stream.Msg()
	m, err := s.open(stream.RequestHeader(), first.GetSandboxId())
	if err != nil {
		return nil, err
	}
	if err := admission.CheckPath("path", first.GetPath(), false); err != nil {
		return nil, err
	}
	if first.GetMode() > 0o7777 {
		return nil, fault.Invalid("mode", "%o is not a file mode", first.GetMode())
	}
	name, mode, parents := first.GetPath(), first.GetMode(), first.GetMakeParents()
	body := &uploadReader{stream: stream, rest: first.GetBody().GetData()}
	client, err := m.guest(ctx)
	if err != nil {
		return nil, m.guestFault(ctx, err)
	}
	info, err := client.WriteFile(ctx, name, mode, parents, body)
	if body.err != nil {
		return nil, body.err
	}
	if err != nil {
		return nil, m.guestFault(ctx, err)
	}
	return connect.NewResponse(fileMessage(&info)), nil
}

// uploadReader reads the bodies of a stream of messages. A stream that breaks
// off is an error, never an end: half a file must not look whole.
type uploadReader struct {
	stream *connect.ClientStream[siroccov1.WriteFileRequest]
	rest   []byte
	err    error
}

func (u *uploadReader) Read(p []byte) (int, error) {
	for len(u.rest) == 0 {
		if !u.stream.Receive() {
			if u.err = u.stream.Err(); u.err != nil {
				return 0, u.err
			}
			return 0, io.EOF
		}
		u.rest = u.stream.Msg().GetBody().GetData()
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}

func (s fileService) List(ctx context.Context, req *connect.Request[siroccov1.ListFilesRequest]) (*connect.Response[siroccov1.ListFilesResponse], error) {
	m, err := s.path(req.Header(), req.Msg.GetSandboxId(), "path", req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	resp, err := call(ctx, m, func(c *guest.Client) (*siroccov1.ListFilesResponse, error) {
		resp := &siroccov1.ListFilesResponse{}
		err := c.ListFiles(ctx, req.Msg.GetPath(), func(f guest.FileInfo) error {
			resp.Files = append(resp.Files, fileMessage(&f))
			return nil
		})
		return resp, err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

func (s fileService) Stat(ctx context.Context, req *connect.Request[siroccov1.StatFileRequest]) (*connect.Response[siroccov1.FileInfo], error) {
	m, err := s.path(req.Header(), req.Msg.GetSandboxId(), "path", req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	return fileResponse(call(ctx, m, func(c *guest.Client) (guest.FileInfo, error) { return c.Stat(ctx, req.Msg.GetPath()) }))
}

func (s fileService) MakeDir(ctx context.Context, req *connect.Request[siroccov1.MakeDirRequest]) (*connect.Response[siroccov1.FileInfo], error) {
	m, err := s.path(req.Header(), req.Msg.GetSandboxId(), "path", req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if req.Msg.GetMode() > 0o7777 {
		return nil, fault.Invalid("mode", "%o is not a file mode", req.Msg.GetMode())
	}
	return fileResponse(call(ctx, m, func(c *guest.Client) (guest.FileInfo, error) {
		return c.MakeDir(ctx, req.Msg.GetPath(), req.Msg.GetMode())
	}))
}

func (s fileService) Remove(ctx context.Context, req *connect.Request[siroccov1.RemoveFileRequest]) (*connect.Response[siroccov1.RemoveFileResponse], error) {
	m, err := s.path(req.Header(), req.Msg.GetSandboxId(), "path", req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	_, err = call(ctx, m, func(c *guest.Client) (struct{}, error) {
		return struct{}{}, c.Remove(ctx, req.Msg.GetPath(), req.Msg.GetRecursive())
	})
	return connect.NewResponse(&siroccov1.RemoveFileResponse{}), err
}

func (s fileService) Move(ctx context.Context, req *connect.Request[siroccov1.MoveFileRequest]) (*connect.Response[siroccov1.FileInfo], error) {
	r := req.Msg
	m, err := s.path(req.Header(), r.GetSandboxId(), "from", r.GetFrom())
	if err != nil {
		return nil, err
	}
	if err := admission.CheckPath("to", r.GetTo(), false); err != nil {
		return nil, err
	}
	client, err := m.guest(ctx)
	if err != nil {
		return nil, m.guestFault(ctx, err)
	}
	info, err := client.Move(ctx, r.GetFrom(), r.GetTo())
	return fileResponse(info, m.guestFault(ctx, err))
}

func (s fileService) Watch(ctx context.Context, req *connect.Request[siroccov1.WatchFilesRequest], stream *connect.ServerStream[siroccov1.FileEvent]) error {
	m, err := s.path(req.Header(), req.Msg.GetSandboxId(), "path", req.Msg.GetPath())
	if err != nil {
		return err
	}
	client, err := m.guest(ctx)
	if err != nil {
		return m.guestFault(ctx, err)
	}
	err = client.Watch(ctx, req.Msg.GetPath(), req.Msg.GetRecursive(), func(e guest.FileEvent) error {
		return stream.Send(&siroccov1.FileEvent{Path: e.Path, Change: changes[e.Change]})
	})
	return m.guestFault(ctx, err)
}

// path opens the sandbox of a call and checks the path that it names.
func (s *services) path(h map[string][]string, sandboxID, field, p string) (*machine, error) {
	m, err := s.open(h, sandboxID)
	if err != nil {
		return nil, err
	}
	return m, admission.CheckPath(field, p, false)
}

func fileResponse(info guest.FileInfo, err error) (*connect.Response[siroccov1.FileInfo], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(fileMessage(&info)), nil
}

var fileTypes = map[guest.FileType]siroccov1.FileType{
	guest.FileRegular: siroccov1.FileType_FILE_TYPE_REGULAR,
	guest.FileDir:     siroccov1.FileType_FILE_TYPE_DIRECTORY,
	guest.FileSymlink: siroccov1.FileType_FILE_TYPE_SYMLINK,
	guest.FileOther:   siroccov1.FileType_FILE_TYPE_OTHER,
}

var changes = map[guest.Change]siroccov1.FileChange{
	guest.FileCreated:  siroccov1.FileChange_FILE_CHANGE_CREATED,
	guest.FileModified: siroccov1.FileChange_FILE_CHANGE_MODIFIED,
	guest.FileRemoved:  siroccov1.FileChange_FILE_CHANGE_REMOVED,
	guest.WatchStarted: siroccov1.FileChange_FILE_CHANGE_STARTED,
}

func fileMessage(f *guest.FileInfo) *siroccov1.FileInfo {
	return &siroccov1.FileInfo{
		Path: f.Path, Type: fileTypes[f.Type], Size: f.Size, Mode: f.Mode, ModifiedAt: timestamppb.New(f.ModifiedAt),
		Uid: f.UID, Gid: f.GID, Target: f.Target,
	}
}
