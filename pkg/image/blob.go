package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"github.com/sirocco-run/sirocco/pkg/image/layer"
)

var (
	errDigest  = errors.New("content does not match its digest")
	errStalled = errors.New("download made no progress")
)

// unpacked returns the tar stream of a layer, whatever it is compressed with.
func unpacked(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 256<<10)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(head, []byte("BZh")), bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X'}):
		return nil, fmt.Errorf("%w: layer is compressed with bzip2 or xz", ErrInvalid)
	default:
		return io.NopCloser(b), nil
	}
}

// applyBlob merges one layer and checks the unpacked stream against its digest.
func applyBlob(ctx context.Context, m *layer.Merger, open func() (io.ReadCloser, error), want v1.Hash) error {
	if want.Algorithm != "sha256" {
		return fmt.Errorf("%w: digest algorithm %q", ErrInvalid, want.Algorithm)
	}
	f, err := open()
	if err != nil {
		return fmt.Errorf("open layer: %w", err)
	}
	defer f.Close()
	r, err := unpacked(f)
	if err != nil {
		return fmt.Errorf("unpack layer: %w", err)
	}
	defer r.Close()
	sum := sha256.New()
	if err := m.Apply(ctx, io.TeeReader(r, sum)); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.Hex {
		return fmt.Errorf("%w: layer is sha256:%s, not %s", errDigest, got, want)
	}
	return nil
}

// stall is the body of an answer that fails when nothing arrives for a while.
type stall struct {
	r     io.ReadCloser
	wait  time.Duration
	timer *time.Timer
	late  atomic.Bool
}

func newStall(r io.ReadCloser, wait time.Duration) *stall {
	s := &stall{r: r, wait: wait}
	s.timer = time.AfterFunc(wait, func() {
		s.late.Store(true)
		_ = r.Close() // wakes the reader
	})
	return s
}

func (s *stall) Read(b []byte) (int, error) {
	// Time that the reader spends elsewhere is not the network's.
	s.timer.Reset(s.wait)
	n, err := s.r.Read(b)
	s.timer.Stop()
	if s.late.Load() {
		return n, fmt.Errorf("%w for %s", errStalled, s.wait)
	}
	return n, err
}

func (s *stall) Close() error {
	s.timer.Stop()
	return s.r.Close()
}

// patient puts a limit on how long the body of an answer may stall.
type patient struct {
	*http.Transport
	wait time.Duration
}

// RoundTrip is that of the transport.
func (p patient) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := p.Transport.RoundTrip(r)
	if err == nil {
		resp.Body = newStall(resp.Body, p.wait)
	}
	return resp, err
}

// counted adds what is read to a counter.
type counted struct {
	r    io.Reader
	done *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.done.Add(int64(n))
	return n, err
}

// runConfig takes from an image's configuration what the platform uses, and
// refuses what no process could be started with.
func (s *Store) runConfig(c *v1.ConfigFile) (Config, error) {
	if c.OS != "" && c.OS != s.platform.OS || c.Architecture != "" && c.Architecture != s.platform.Architecture {
		return Config{}, fmt.Errorf("%w: it is for %s/%s, this node is %s", ErrInvalid, c.OS, c.Architecture, s.opt.Platform)
	}
	if t := c.RootFS.Type; t != "" && t != "layers" {
		return Config{}, fmt.Errorf("%w: root file system of type %q", ErrInvalid, t)
	}
	out := Config{Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, User: c.Config.User}
	for _, e := range c.Config.Env {
		if i := strings.IndexByte(e, '='); i > 0 {
			out.Env = append(out.Env, e)
		}
	}
	if c.Config.WorkingDir != "" {
		out.WorkingDir = path.Clean("/" + c.Config.WorkingDir)
	}
	size := 0
	for _, list := range [][]string{out.Env, out.Entrypoint, out.Cmd, {out.WorkingDir, out.User}} {
		for _, v := range list {
			if size += len(v) + 1; strings.IndexByte(v, 0) >= 0 {
				return Config{}, fmt.Errorf("%w: its configuration holds a zero byte", ErrInvalid)
			}
		}
	}
	if size > 1<<20 {
		return Config{}, fmt.Errorf("%w: its environment and command have %d bytes", ErrTooLarge, size)
	}
	return out, nil
}
