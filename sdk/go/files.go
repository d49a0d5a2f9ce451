package sirocco

import (
	"context"
	"errors"
	"io"
	"iter"

	"connectrpc.com/connect"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/genproto/googleapis/api/httpbody"
)

// chunk is how much of a file goes into one message.
const chunk = 256 << 10

// ReadFile returns the content of a file from offset on; length 0 means to its
// end. The caller closes the reader. Errors, which come with the first Read:
// NotFound, InvalidArgument.
func (s *Sandbox) ReadFile(ctx context.Context, path string, offset, length int64) (io.ReadCloser, error) {
	if err := s.data(ctx); err != nil {
		return nil, err
	}
	return newBody(ctx, func(ctx context.Context) (*connect.ServerStreamForClient[httpbody.HttpBody], error) {
		return s.files.Read(ctx, connect.NewRequest(&siroccov1.ReadFileRequest{SandboxId: s.ID, Path: path, Offset: offset, Length: length}))
	})
}

// WriteOptions say how a file is written.
type WriteOptions struct {
	// Mode holds the permission bits; zero means 0644.
	Mode uint32
	// MakeParents makes missing folders.
	MakeParents bool
}

// WriteFile replaces a file by what r holds: whole, or, when r or the
// connection fails, not at all.
func (s *Sandbox) WriteFile(ctx context.Context, path string, r io.Reader, o WriteOptions) (*siroccov1.FileInfo, error) {
	if err := s.data(ctx); err != nil {
		return nil, err
	}
	// Giving up must break the stream: an orderly end would make the file.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := s.files.Write(ctx)
	msg := &siroccov1.WriteFileRequest{SandboxId: s.ID, Path: path, Mode: o.Mode, MakeParents: o.MakeParents}
	buf := make([]byte, chunk)
	for first := true; ; first = false {
		n, rerr := io.ReadFull(r, buf)
		if rerr != nil && rerr != io.EOF && !errors.Is(rerr, io.ErrUnexpectedEOF) {
			return nil, rerr
		}
		if n > 0 || first {
			msg.Body = &httpbody.HttpBody{ContentType: "application/octet-stream", Data: buf[:n]}
			if err := stream.Send(msg); err != nil {
				if errors.Is(err, io.EOF) {
					break // the answer says why
				}
				return nil, typed(err)
			}
			msg = &siroccov1.WriteFileRequest{}
		}
		if rerr != nil {
			break
		}
	}
	resp, err := stream.CloseAndReceive()
	if err != nil {
		return nil, typed(err)
	}
	return resp.Msg, nil
}

// ListFiles returns the entries of a folder, sorted by name.
func (s *Sandbox) ListFiles(ctx context.Context, path string) ([]*siroccov1.FileInfo, error) {
	if err := s.data(ctx); err != nil {
		return nil, err
	}
	resp, err := dataCall(ctx, s, s.files.List, &siroccov1.ListFilesRequest{SandboxId: s.ID, Path: path})
	return resp.GetFiles(), err
}

// Stat describes a file. Errors: NotFound.
func (s *Sandbox) Stat(ctx context.Context, path string) (*siroccov1.FileInfo, error) {
	if err := s.data(ctx); err != nil {
		return nil, err
	}
	return dataCall(ctx, s, s.files.Stat, &siroccov1.StatFileRequest{SandboxId: s.ID, Path: path})
}

// MakeDir makes a folder and its parents; one that exists is no error. Mode 0
// means 0755.
func (s *Sandbox) MakeDir(ctx context.Context, path string, mode uint32) (*siroccov1.FileInfo, error) {
	if err := s.data(ctx); err != nil {
		return nil, err
	}
	return dataCall(ctx, s, s.files.MakeDir, &siroccov1.MakeDirRequest{SandboxId: s.ID, Path: path, Mode: mode})
}

// Remove removes a file, or with recursive a folder.
func (s *Sandbox) Remove(ctx context.Context, path string, recursive bool) error {
	if err := s.data(ctx); err != nil {
		return err
	}
	_, err := once(ctx, s.files.Remove, &siroccov1.RemoveFileRequest{SandboxId: s.ID, Path: path, Recursive: recursive})
	return err
}

// Move renames a file.
func (s *Sandbox) Move(ctx context.Context, from, to string) (*siroccov1.FileInfo, error) {
	if err := s.data(ctx); err != nil {
		return nil, err
	}
	return once(ctx, s.files.Move, &siroccov1.MoveFileRequest{SandboxId: s.ID, From: from, To: to})
}

// WatchFiles yields the changes below a path. The first element has the change
// FILE_CHANGE_STARTED: whatever happens after it is reported. It ends with ctx,
// or with an error as its last element; a broken stream is not taken up again,
// because what happened meanwhile would be missed.
func (s *Sandbox) WatchFiles(ctx context.Context, path string, recursive bool) iter.Seq2[*siroccov1.FileEvent, error] {
	return func(yield func(*siroccov1.FileEvent, error) bool) {
		if err := s.data(ctx); err != nil {
			yield(nil, err)
			return
		}
		stream, err := s.files.Watch(ctx, connect.NewRequest(&siroccov1.WatchFilesRequest{SandboxId: s.ID, Path: path, Recursive: recursive}))
		if err != nil {
			yield(nil, typed(err))
			return
		}
		defer stream.Close()
		for stream.Receive() {
			if !yield(stream.Msg(), nil) {
				return
			}
		}
		if err := stream.Err(); err != nil && ctx.Err() == nil {
			yield(nil, typed(err))
		}
	}
}

// body reads a stream of pieces as one run of bytes.
type body struct {
	stream *connect.ServerStreamForClient[httpbody.HttpBody]
	cancel context.CancelFunc
	rest   []byte
}

func newBody(ctx context.Context, open func(context.Context) (*connect.ServerStreamForClient[httpbody.HttpBody], error)) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := open(ctx)
	if err != nil {
		cancel()
		return nil, typed(err)
	}
	return &body{stream: stream, cancel: cancel}, nil
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		if !b.stream.Receive() {
			if err := b.stream.Err(); err != nil {
				return 0, typed(err)
			}
			return 0, io.EOF
		}
		b.rest = b.stream.Msg().GetData()
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// Close implements io.Closer. It does not read what is left.
func (b *body) Close() error {
	b.cancel()
	_ = b.stream.Close()
	return nil
}
