package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	readerofs "github.com/erofs/go-erofs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// program writes an executable file of some content and returns its path.
func programFile(t testing.TB, content string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(p, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func newStore(t testing.TB, change func(*Options)) *Store {
	t.Helper()
	opt := Options{Dir: t.TempDir(), Supervisor: programFile(t, "supervisor"), Base: programFile(t, "base"), Platform: "linux/amd64", Keychain: authn.NewMultiKeychain()}
	if change != nil {
		change(&opt)
	}
	s, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	s.retryWait = time.Millisecond
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func resolve(t testing.TB, s *Store, ref string) Image {
	t.Helper()
	img, err := s.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatalf("resolve %s: %v", ref, err)
	}
	return img
}

// content returns what a file of an image holds.
func content(t testing.TB, img Image, file string) string {
	t.Helper()
	f, err := os.Open(img.Rootfs.EROFS)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	src, err := readerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := fs.ReadFile(src, strings.TrimPrefix(file, "/"))
	if err != nil {
		return "error: " + err.Error()
	}
	return string(b)
}

// tarOf makes a tar of files; a name with "->" is a symbolic link.
func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range slices.Sorted(maps.Keys(files)) {
		c := files[n]
		h := &tar.Header{Name: n, Mode: 0o644, Size: int64(len(c)), Typeflag: tar.TypeReg}
		if from, to, ok := strings.Cut(n, "->"); ok {
			h = &tar.Header{Name: from, Linkname: to, Typeflag: tar.TypeSymlink}
			c = ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func layerOf(t testing.TB, files map[string]string) v1.Layer {
	t.Helper()
	b := tarOf(t, files)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func imageOf(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	cfg.Config = v1.Config{Env: []string{"A=1", "broken", "=x"}, Entrypoint: []string{"/e"}, Cmd: []string{"c"}, WorkingDir: "w/../x", User: "u:g"}
	img, err = mutate.ConfigFile(img, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// server is a registry whose answers a test can change.
type server struct {
	*httptest.Server
	host string
	mu   sync.Mutex
	hook func(w http.ResponseWriter, r *http.Request) bool
	// blobs counts the blobs that were asked for.
	blobs atomic.Int64
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{}
	h := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			s.blobs.Add(1)
		}
		s.mu.Lock()
		hook := s.hook
		s.mu.Unlock()
		if hook == nil || !hook(w, r) {
			h.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	s.host = strings.TrimPrefix(s.URL, "http://")
	return s
}

func (s *server) on(hook func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

func (s *server) push(t testing.TB, repo string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(s.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

func (s *server) allowed(o *Options) { o.PrivateRegistries = []string{s.host} }

func TestBase(t *testing.T) {
	s := newStore(t, nil)
	img := resolve(t, s, Base)
	for file, want := range map[string]string{SupervisorPath: "supervisor", "/bin/sirocco-base": "base", "/bin/sh": "base", "/etc/resolv.conf": ""} {
		if got := content(t, img, file); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
	if got := content(t, img, "/etc/passwd"); !strings.Contains(got, "user:x:1000:1000:") {
		t.Errorf("passwd: %q", got)
	}
	if got := content(t, img, "/etc/ssl/certs/ca-certificates.crt"); strings.Count(got, "BEGIN CERTIFICATE") < 50 {
		t.Errorf("certificates: %d bytes", len(got))
	}
	// A store that has nothing in common with it makes the same file.
	if elsewhere := resolve(t, newStore(t, nil), Base); elsewhere.Sum != img.Sum || img.Sum == "" {
		t.Errorf("the file is %s here and %s elsewhere", img.Sum, elsewhere.Sum)
	}
	again := resolve(t, s, Base)
	if again.Digest != img.Digest || again.Rootfs.EROFS != img.Rootfs.EROFS || again.Source != "base" {
		t.Errorf("the second time %+v, the first %+v", again, img)
	}
	// Another store in the same folder finds the image, whatever made it.
	other := newStore(t, func(o *Options) { *o = s.opt })
	if got := resolve(t, other, Base); got.Digest != img.Digest {
		t.Errorf("another store: %s, want %s", got.Digest, img.Digest)
	}
	// Another program is another image.
	if err := os.WriteFile(s.opt.Base, []byte("base 2"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := resolve(t, s, Base); got.Digest == img.Digest || content(t, got, "/bin/sh") != "base 2" {
		t.Errorf("the new program is not in %s", got.Digest)
	}
}

func TestBaseWithNetworkProgram(t *testing.T) {
	s := newStore(t, func(o *Options) {
		if err := os.WriteFile(o.Base+"-net", []byte("net"), 0o755); err != nil {
			t.Fatal(err)
		}
	})
	img := resolve(t, s, Base)
	if content(t, img, "/bin/wget") != "net" || content(t, img, "/bin/sh") != "base" {
		t.Errorf("wget is %q, sh is %q", content(t, img, "/bin/wget"), content(t, img, "/bin/sh"))
	}
}

func TestCorruptFileIsMadeAnew(t *testing.T) {
	s := newStore(t, nil)
	img := resolve(t, s, Base)
	if err := os.Truncate(img.Rootfs.EROFS, 5000); err != nil {
		t.Fatal(err)
	}
	if got := resolve(t, s, Base); content(t, got, SupervisorPath) != "supervisor" {
		t.Error("not made anew")
	}
	if err := os.WriteFile(filepath.Join(s.imageDir(img.Digest), "image.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	resolve(t, s, Base)
}

func TestHost(t *testing.T) {
	s := newStore(t, nil)
	img := resolve(t, s, Host)
	if again := resolve(t, s, Host); again.Digest != img.Digest {
		t.Errorf("two digests: %s, %s", img.Digest, again.Digest)
	}
	other := newStore(t, func(o *Options) { *o = s.opt; o.Dir = t.TempDir() })
	if again := resolve(t, other, Host); again.Digest != img.Digest {
		t.Errorf("another store has another digest")
	}
	root := img.Rootfs.Dir
	st, err := os.Stat(root + SupervisorPath)
	if err != nil || st.Mode().Perm() != 0o555 {
		t.Errorf("supervisor: %v %v", st, err)
	}
	found := false
	for _, b := range img.Rootfs.Binds {
		found = found || b.Source == "/usr" && b.Target == "/usr"
		if st, err := os.Lstat(root + b.Target); err != nil || !st.IsDir() {
			t.Errorf("%s has no place: %v", b.Target, err)
		}
	}
	if !found {
		t.Errorf("/usr is missing: %v", img.Rootfs.Binds)
	}
	for _, secret := range []string{"etc/shadow", "etc/gshadow", "etc/ssh", "etc/machine-id", "etc/ssl/private", "root/.ssh", "etc/sudoers"} {
		if _, err := os.Lstat(filepath.Join(root, secret)); err == nil {
			t.Errorf("%s is shown", secret)
		}
	}
	// Nothing in it is readable only by root on this machine, or leads to a
	// place that is not shown.
	err = filepath.WalkDir(filepath.Join(root, "etc"), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := d.Info(); err != nil || d.Type().IsRegular() && info.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v, %v", p, info.Mode(), err)
		}
		if d.Type()&fs.ModeSymlink != 0 {
			target, _ := os.Readlink(p)
			if strings.HasPrefix(target, "/root") || strings.HasPrefix(target, "/home") {
				t.Errorf("%s leads to %s", p, target)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil || !strings.Contains(string(passwd), "root:x:0:0:root:") || !strings.Contains(string(passwd), "\nuser:x:1000:") {
		t.Errorf("passwd: %q, %v", passwd, err)
	}
}

func TestPull(t *testing.T) {
	reg := newServer(t)
	pushed := imageOf(t,
		layerOf(t, map[string]string{"etc/a": "lower", "etc/b": "b", "etc/resolv.conf->/run/x": "", ".sirocco/init": "mine!", "proc->/": ""}),
		layerOf(t, map[string]string{"etc/a": "upper", "etc/.wh.b": ""}))
	ref := reg.push(t, "team/app:1", pushed)
	digest, err := pushed.Digest()
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, reg.allowed)
	img := resolve(t, s, ref)
	if img.Digest != digest.String() || img.Source != reg.host+"/team/app@"+digest.String() || img.Ref != ref {
		t.Errorf("%+v, want digest %s", img, digest)
	}
	want := Config{Env: []string{"A=1"}, Entrypoint: []string{"/e"}, Cmd: []string{"c"}, WorkingDir: "/x", User: "u:g"}
	if fmt.Sprintf("%q", img.Config) != fmt.Sprintf("%q", want) {
		t.Errorf("config %q, want %q", img.Config, want)
	}
	if content(t, img, "/etc/a") != "upper" || !strings.HasPrefix(content(t, img, "/etc/b"), "error") {
		t.Error("the layers are not merged")
	}
	if got := content(t, img, SupervisorPath); got != "supervisor" {
		t.Errorf("the image's own %q is in the place of the supervisor", got)
	}
	if got := content(t, img, "/etc/resolv.conf"); got != "" {
		t.Errorf("resolv.conf: %q", got)
	}

	// From here the registry is not needed: the tag is fresh, the digest fixed.
	reg.on(func(w http.ResponseWriter, _ *http.Request) bool {
		t.Error("the registry was asked again")
		w.WriteHeader(http.StatusTeapot)
		return true
	})
	resolve(t, s, ref)
	if again := resolve(t, s, img.Source); again.Digest != img.Digest || again.Source != img.Source {
		t.Errorf("by digest: %+v", again)
	}
	// A new supervisor does not need it either.
	if err := os.WriteFile(s.opt.Supervisor, []byte("supervisor 2"), 0o755); err != nil {
		t.Fatal(err)
	}
	renewed := resolve(t, s, ref)
	if content(t, renewed, SupervisorPath) != "supervisor 2" || content(t, renewed, "/etc/a") != "upper" {
		t.Error("the image was not renewed")
	}
	if _, err := os.Stat(img.Rootfs.EROFS); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old file is still there: %v", err)
	}

	// A tag that is old is asked for again, and believed while nobody answers.
	s.opt.TagTTL = time.Nanosecond
	reg.on(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true })
	if again := resolve(t, s, ref); again.Digest != img.Digest {
		t.Errorf("while away: %s", again.Digest)
	}
	reg.on(nil)
	moved := imageOf(t, layerOf(t, map[string]string{"new": "x"}))
	reg.push(t, "team/app:1", moved)
	if again := resolve(t, s, ref); content(t, again, "/new") != "x" {
		t.Error("the tag still means the old image")
	}
}

func TestPullErrors(t *testing.T) {
	reg := newServer(t)
	good := reg.push(t, "good:1", imageOf(t, layerOf(t, map[string]string{"a": "a"})))
	armed := imageOf(t, layerOf(t, map[string]string{"a": "a"}))
	cfg, err := armed.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.Architecture = "riscv64"
	if armed, err = mutate.ConfigFile(armed, cfg); err != nil {
		t.Fatal(err)
	}
	other := reg.push(t, "other:1", armed)
	bomb := reg.push(t, "bomb:1", imageOf(t, layerOf(t, map[string]string{"a": strings.Repeat("0", 8<<20)})))
	hostile := reg.push(t, "hostile:1", imageOf(t, layerOf(t, map[string]string{"a->a": "", "a/b": "x"})))
	answer := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	blob := func(f func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			f(w, r)
			return true
		}
	}
	for _, c := range []struct {
		name, ref string
		hook      func(http.ResponseWriter, *http.Request) bool
		change    func(*Options)
		want      error
	}{
		{name: "no such tag", ref: reg.host + "/good:2", want: ErrNotFound},
		{name: "no such repository", ref: reg.host + "/bad:2", want: ErrNotFound},
		{name: "no such blob", ref: good, hook: blob(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }), want: ErrNotFound},
		{name: "not allowed", ref: good, hook: answer(http.StatusUnauthorized), want: ErrDenied},
		{name: "forbidden", ref: good, hook: answer(http.StatusForbidden), want: ErrDenied},
		{name: "overloaded", ref: good, hook: answer(http.StatusTooManyRequests), want: ErrUnavailable},
		{name: "broken", ref: good, hook: answer(http.StatusInternalServerError), want: ErrUnavailable},
		{name: "wrong content", ref: good, hook: blob(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "something else altogether")
		}), want: ErrInvalid},
		{name: "no manifest", ref: good, hook: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				_, _ = io.WriteString(w, "<html>")
				return true
			}
			return false
		}, want: ErrInvalid},
		{name: "cut off", ref: good, hook: blob(func(w http.ResponseWriter, _ *http.Request) {
			abort(w)
		}), want: ErrUnavailable},
		{name: "stalled", ref: good, change: func(o *Options) { o.StallTimeout = 50 * time.Millisecond },
			hook: blob(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, "part")
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}), want: ErrUnavailable},
		{name: "pull takes too long", ref: good, change: func(o *Options) { o.PullTimeout = 100 * time.Millisecond },
			hook: blob(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), want: ErrUnavailable},
		{name: "another platform", ref: other, want: ErrInvalid},
		{name: "hostile layer", ref: hostile, want: ErrInvalid},
		{name: "bomb", ref: bomb, change: func(o *Options) { o.MaxImageBytes = 1 << 20 }, want: ErrTooLarge},
		{name: "many entries", ref: good, change: func(o *Options) { o.MaxImageEntries = -1; o.MaxImageBytes = 100 }, want: ErrTooLarge},
		{name: "nobody listens", ref: "127.0.0.1:1/x:1", change: func(o *Options) { o.PrivateRegistries = []string{"127.0.0.1:1"} }, want: ErrUnavailable},
		{name: "private address", ref: good, change: func(o *Options) { o.PrivateRegistries = nil }, want: ErrDenied},
		{name: "metadata address", ref: "169.254.169.254/x:1", change: func(o *Options) { o.PrivateRegistries = []string{"169.254.169.254"} }, want: ErrDenied},
		{name: "bad reference", ref: "UPPER/case", want: ErrInvalid},
		{name: "path", ref: "../../etc/passwd", want: ErrInvalid},
		{name: "empty", ref: "", want: ErrInvalid},
		{name: "long", ref: strings.Repeat("a", 600), want: ErrInvalid},
		{name: "bad digest", ref: reg.host + "/good@sha256:12", want: ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg.on(c.hook)
			defer reg.on(nil)
			s := newStore(t, func(o *Options) {
				reg.allowed(o)
				if c.change != nil {
					c.change(o)
				}
			})
			_, err := s.Resolve(t.Context(), c.ref)
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			left, err := os.ReadDir(s.path("tmp"))
			if err == nil && len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if images, _ := os.ReadDir(s.path("images")); len(images) > 0 {
				t.Errorf("half an image: %v", images)
			}
		})
	}
}

// abort ends an answer in its middle.
func abort(w http.ResponseWriter) {
	_, _ = io.WriteString(w, "part")
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// TestPullSurvivesABrokenConnection: a download that breaks is tried again.
func TestPullSurvivesABrokenConnection(t *testing.T) {
	reg := newServer(t)
	ref := reg.push(t, "a:1", imageOf(t, layerOf(t, map[string]string{"a": "content"})))
	var broken atomic.Int64
	reg.on(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || broken.Add(1) > 2 {
			return false
		}
		abort(w)
		return true
	})
	s := newStore(t, reg.allowed)
	if img := resolve(t, s, ref); content(t, img, "/a") != "content" {
		t.Error("wrong content")
	}
}

func TestCredentials(t *testing.T) {
	reg := newServer(t)
	ref := reg.push(t, "a:1", imageOf(t, layerOf(t, map[string]string{"a": "a"})))
	reg.on(func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, ok := r.BasicAuth(); ok && user == "u" && pass == "p" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	if _, err := newStore(t, reg.allowed).Resolve(t.Context(), ref); !errors.Is(err, ErrDenied) {
		t.Errorf("without credentials: %v", err)
	}
	s := newStore(t, func(o *Options) { reg.allowed(o); o.Keychain = keychain{"u", "p"} })
	resolve(t, s, ref)
}

type keychain [2]string

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: k[0], Password: k[1]}, nil
}

// TestOnePullForAll: fifty callers share one pull, and those who leave do not
// end it for the others.
func TestOnePullForAll(t *testing.T) {
	reg := newServer(t)
	ref := reg.push(t, "a:1", imageOf(t, layerOf(t, map[string]string{"a": "a"}), layerOf(t, map[string]string{"b": "b"})))
	arrived, gate := make(chan struct{}, 100), make(chan struct{})
	reg.on(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			arrived <- struct{}{}
			<-gate
		}
		return false
	})
	reg.blobs.Store(0)
	s := newStore(t, reg.allowed)
	leaving, leave := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := s.Resolve(leaving, ref); first <- err }()
	<-arrived
	var wg sync.WaitGroup
	errs := make(chan error, 50)
	for range 50 {
		wg.Go(func() {
			_, err := s.Resolve(t.Context(), ref)
			errs <- err
		})
	}
	waitFor(t, func() bool {
		s.flights.mu.Lock()
		defer s.flights.mu.Unlock()
		for _, fl := range s.flights.m {
			if fl.waiters == 51 {
				return true
			}
		}
		return false
	})
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who leaves gets %v", err)
	}
	close(gate)
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if n := reg.blobs.Load(); n != 3 {
		t.Errorf("%d blobs were fetched, want 3", n)
	}
}

// TestNobodyWaits: a pull that nobody waits for any more ends.
func TestNobodyWaits(t *testing.T) {
	reg := newServer(t)
	ref := reg.push(t, "a:1", imageOf(t, layerOf(t, map[string]string{"a": "a"})))
	arrived := make(chan struct{}, 10)
	reg.on(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			arrived <- struct{}{}
			<-r.Context().Done()
		}
		return false
	})
	s := newStore(t, reg.allowed)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	if _, err := s.Resolve(ctx, ref); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	s.flights.done.Wait()
	reg.on(nil)
	resolve(t, s, ref)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Resolve(t.Context(), ref); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("waited for too long")
		}
		<-tick.C
	}
}

func TestCollect(t *testing.T) {
	reg := newServer(t)
	s := newStore(t, func(o *Options) { reg.allowed(o); o.MaxBytes = 1 })
	s.gcGrace = time.Hour
	var refs []string
	var imgs []Image
	for i := range 3 {
		refs = append(refs, reg.push(t, fmt.Sprintf("a%d:1", i), imageOf(t, layerOf(t, map[string]string{"a": fmt.Sprint(i)}))))
		imgs = append(imgs, resolve(t, s, refs[i]))
	}
	base := resolve(t, s, Base)
	s.gcGrace = 0
	release, err := s.Acquire(imgs[1].Digest)
	if err != nil {
		t.Fatal(err)
	}
	// Another store on the folder respects who uses the image here.
	other := newStore(t, func(o *Options) { *o = s.opt })
	other.gcGrace = 0
	removed, err := other.Collect()
	if err != nil || len(removed) != 2 {
		t.Errorf("removed %v, %v; want the two that are not used", removed, err)
	}
	for i, img := range imgs {
		_, err := os.Stat(img.Rootfs.EROFS)
		if (err == nil) != (i == 1) {
			t.Errorf("image %d: %v", i, err)
		}
	}
	if _, err := os.Stat(base.Rootfs.EROFS); err != nil {
		t.Errorf("the base image was collected: %v", err)
	}
	if err := s.Remove(imgs[1].Digest); !errors.Is(err, ErrInUse) {
		t.Errorf("remove while in use: %v", err)
	}
	if err := other.Remove(refs[1]); !errors.Is(err, ErrInUse) {
		t.Errorf("remove from the other store: %v", err)
	}
	release()
	release()
	if err := s.Remove(refs[1]); err != nil {
		t.Errorf("remove: %v", err)
	}
	if _, err := s.Acquire(imgs[1].Digest); !errors.Is(err, ErrNotFound) {
		t.Errorf("acquire what is gone: %v", err)
	}
	if err := s.Remove(refs[1]); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove twice: %v", err)
	}
	if err := s.Remove(Base); !errors.Is(err, ErrInvalid) {
		t.Errorf("remove base: %v", err)
	}
	resolve(t, s, refs[0])
}
