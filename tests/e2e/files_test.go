package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// noise is n bytes that do not compress, the same each time.
func noise(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // reproducible on purpose
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b
}

func write(t *testing.T, s *sirocco.Sandbox, path, body string) {
	t.Helper()
	if _, err := s.WriteFile(t.Context(), path, strings.NewReader(body), sirocco.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, s *sirocco.Sandbox, path string, offset, length int64) (string, error) {
	t.Helper()
	f, err := s.ReadFile(t.Context(), path, offset, length)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(f)
	return string(raw), err
}

func TestFiles(t *testing.T) {
	t.Parallel()
	s := create(t, nil)
	info, err := s.WriteFile(t.Context(), "/tmp/a/b/hello", strings.NewReader("hello"), sirocco.WriteOptions{Mode: 0o640, MakeParents: true})
	if err != nil || info.GetSize() != 5 || info.GetMode() != 0o640 || info.GetType() != siroccov1.FileType_FILE_TYPE_REGULAR {
		t.Fatalf("%v, %v", info, err)
	}
	if got := sh(t, s, "cat /tmp/a/b/hello; stat -c %a /tmp/a/b/hello"); got != "hello640" {
		t.Errorf("inside: %q", got)
	}
	write(t, s, "/tmp/a/b/hello", "hello again")
	for part, want := range map[[2]int64]string{{0, 0}: "hello again", {6, 0}: "again", {6, 2}: "ag", {100, 0}: ""} {
		if got, err := read(t, s, "/tmp/a/b/hello", part[0], part[1]); err != nil || got != want {
			t.Errorf("read %v: %q, %v", part, got, err)
		}
	}
	if _, err := s.MakeDir(t.Context(), "/tmp/a/deep/down", 0); err != nil {
		t.Fatal(err)
	}
	sh(t, s, "ln -s /etc/passwd /tmp/a/link")
	files, err := s.ListFiles(t.Context(), "/tmp/a")
	if err != nil || len(files) != 3 || files[0].GetPath() != "/tmp/a/b" || files[1].GetPath() != "/tmp/a/deep" || files[2].GetTarget() != "/etc/passwd" {
		t.Errorf("list: %v, %v", files, err)
	}
	if moved, err := s.Move(t.Context(), "/tmp/a/b/hello", "/tmp/a/moved"); err != nil || moved.GetPath() != "/tmp/a/moved" {
		t.Errorf("move: %v, %v", moved, err)
	}
	_, err = s.Stat(t.Context(), "/tmp/a/b/hello")
	wantCode(t, "stat of what was moved", err, sirocco.NotFound)
	wantCode(t, "remove a folder that is not empty", s.Remove(t.Context(), "/tmp/a", false), sirocco.FailedPrecondition)
	if err := s.Remove(t.Context(), "/tmp/a", true); err != nil {
		t.Fatal(err)
	}
	_, err = s.ListFiles(t.Context(), "/tmp/a")
	wantCode(t, "list what was removed", err, sirocco.NotFound)
	if got := sh(t, s, "ls -d /etc/passwd"); got != "/etc/passwd" {
		t.Error("removing a link has removed what it points to")
	}
}

func TestFilePathsThatAreRefused(t *testing.T) {
	t.Parallel()
	s := create(t, nil)
	for _, path := range []string{"", "relative", "/tmp/../etc/passwd", "..", "/..", "/a/..", "/nul\x00", "/" + strings.Repeat("x", 5000)} {
		_, err := read(t, s, path, 0, 0)
		wantCode(t, fmt.Sprintf("read %.20q", path), err, sirocco.InvalidArgument)
		_, err = s.WriteFile(t.Context(), path, strings.NewReader("x"), sirocco.WriteOptions{})
		wantCode(t, fmt.Sprintf("write %.20q", path), err, sirocco.InvalidArgument)
		_, err = s.Stat(t.Context(), path)
		wantCode(t, fmt.Sprintf("stat %.20q", path), err, sirocco.InvalidArgument)
		_, err = s.ListFiles(t.Context(), path)
		wantCode(t, fmt.Sprintf("list %.20q", path), err, sirocco.InvalidArgument)
		_, err = s.MakeDir(t.Context(), path, 0)
		wantCode(t, fmt.Sprintf("make %.20q", path), err, sirocco.InvalidArgument)
		wantCode(t, fmt.Sprintf("remove %.20q", path), s.Remove(t.Context(), path, true), sirocco.InvalidArgument)
		_, err = s.Move(t.Context(), "/etc/passwd", path)
		wantCode(t, fmt.Sprintf("move to %.20q", path), err, sirocco.InvalidArgument)
	}
	_, err := read(t, s, "/no/such", 0, 0)
	wantCode(t, "read what is not there", err, sirocco.NotFound)
	_, err = read(t, s, "/tmp", 0, 0)
	wantCode(t, "read a folder", err, sirocco.FailedPrecondition, sirocco.InvalidArgument)
	_, err = s.WriteFile(t.Context(), "/no/such/file", strings.NewReader("x"), sirocco.WriteOptions{})
	wantCode(t, "write into a folder that is not there", err, sirocco.NotFound)
}

// errReader fails after what it holds.
type errReader struct{ io.Reader }

func (r errReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = errors.New("the upload broke off")
	}
	return n, err
}

func TestTruncatedUploadLeavesNothing(t *testing.T) {
	t.Parallel()
	s := create(t, nil)
	sh(t, s, "mkdir /tmp/up")
	write(t, s, "/tmp/up/kept", "as it was")
	for _, path := range []string{"/tmp/up/new", "/tmp/up/kept"} {
		if _, err := s.WriteFile(t.Context(), path, errReader{bytes.NewReader(noise(3 << 20))}, sirocco.WriteOptions{}); err == nil {
			t.Errorf("%s: half a file was taken", path)
		}
		// The caller's machine goes away in the middle.
		ctx, cancel := context.WithCancel(t.Context())
		in, out := io.Pipe()
		go func() {
			_, _ = out.Write(noise(1 << 20))
			cancel()
			_ = out.CloseWithError(context.Canceled)
		}()
		if _, err := s.WriteFile(ctx, path, in, sirocco.WriteOptions{}); err == nil {
			t.Errorf("%s: half a file was taken", path)
		}
		cancel()
	}
	if got, err := read(t, s, "/tmp/up/kept", 0, 0); err != nil || got != "as it was" {
		t.Errorf("what was there: %d bytes, %v", len(got), err)
	}
	// The node learns of a caller that has left a moment later.
	eventually(t, func() string { return sh(t, s, "ls -A /tmp/up") }, "kept")
}

func TestBigFileThereAndBack(t *testing.T) {
	t.Parallel()
	s := create(t, nil)
	data := noise(200 << 20)
	want := fmt.Sprintf("%x", sha256.Sum256(data))
	info, err := s.WriteFile(t.Context(), "/tmp/big", bytes.NewReader(data), sirocco.WriteOptions{})
	if err != nil || info.GetSize() != int64(len(data)) {
		t.Fatalf("%v, %v", info, err)
	}
	if got := sh(t, s, "sha256sum /tmp/big"); !strings.HasPrefix(got, want) {
		t.Errorf("inside: %s, want %s", got, want)
	}
	f, err := s.ReadFile(t.Context(), "/tmp/big", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if n, err := io.Copy(sum, f); err != nil || n != int64(len(data)) || fmt.Sprintf("%x", sum.Sum(nil)) != want {
		t.Errorf("back: %d bytes, %v", n, err)
	}
}

func TestWatchFiles(t *testing.T) {
	t.Parallel()
	s := create(t, nil)
	sh(t, s, "mkdir -p /tmp/w/deep")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	seen := map[string][]siroccov1.FileChange{}
	for e, err := range s.WatchFiles(ctx, "/tmp/w", true) {
		if err != nil {
			t.Fatal(err)
		}
		if e.GetChange() == siroccov1.FileChange_FILE_CHANGE_STARTED {
			sh(t, s, "echo 1 >/tmp/w/a; echo 2 >/tmp/w/deep/b; rm /tmp/w/a; mkdir /tmp/w/later; touch /tmp/w/last")
		}
		seen[e.GetPath()] = append(seen[e.GetPath()], e.GetChange())
		if e.GetPath() == "/tmp/w/last" {
			break
		}
	}
	has := func(path string, change siroccov1.FileChange) {
		t.Helper()
		if !slices.Contains(seen[path], change) {
			t.Errorf("%s was not reported as %v: %v", path, change, seen)
		}
	}
	has("/tmp/w/a", siroccov1.FileChange_FILE_CHANGE_CREATED)
	has("/tmp/w/a", siroccov1.FileChange_FILE_CHANGE_REMOVED)
	has("/tmp/w/deep/b", siroccov1.FileChange_FILE_CHANGE_CREATED)
	has("/tmp/w/later", siroccov1.FileChange_FILE_CHANGE_CREATED)
}
