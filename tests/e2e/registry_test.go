package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log" //nolint:depguard // the registry takes no other
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	cr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sirocco-run/sirocco/tests/platform"
)

// imageRegistry is a real registry on loopback.
type imageRegistry struct {
	listener net.Listener
	server   *http.Server
	done     chan error
}

// registry is the one of this package's tests.
var registry imageRegistry

func (r *imageRegistry) open() (err error) {
	if r.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return err
	}
	r.server = &http.Server{Handler: cr.New(cr.Logger(log.New(io.Discard, "", 0)))} //nolint:gosec // of a test
	r.done = make(chan error, 1)
	go func() { r.done <- r.server.Serve(r.listener) }()
	return nil
}

func (r *imageRegistry) close() {
	_ = r.server.Close()
	<-r.done
}

func (r *imageRegistry) host() string { return r.listener.Addr().String() }

// file is one file of an image.
type file struct {
	name, body string
	mode       int64
	link       string // of a symbolic link
}

// layer makes a layer of files.
func layer(files ...file) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.body)), Typeflag: tar.TypeReg, Linkname: f.link}
		if f.link != "" {
			h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
		} else if strings.HasSuffix(f.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
}

// testImage is an image with the userland of the base image at /bin/base, two
// layers of which the second replaces and removes files of the first, and a
// configuration of its own.
func testImage() (v1.Image, error) {
	bin, err := platform.Bin()
	if err != nil {
		return nil, err
	}
	base, err := os.ReadFile(filepath.Join(bin, "guest", "base"))
	if err != nil {
		return nil, err
	}
	one, err1 := layer(file{name: "bin/sh", body: string(base), mode: 0o755}, file{name: "bin/cat", link: "sh"}, file{name: "bin/sleep", link: "/bin/sh"},
		file{name: "etc/passwd", body: "root:x:0:0::/:/bin/sh\nann:x:1000:1000::/:/bin/sh\n", mode: 0o644}, file{name: "srv/first", body: "one", mode: 0o644}, file{name: "srv/gone", body: "x", mode: 0o644})
	two, err2 := layer(file{name: "srv/first", body: "two", mode: 0o644}, file{name: "srv/.wh.gone", mode: 0o644})
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, one, two)
	if err != nil {
		return nil, err
	}
	return mutate.Config(img, v1.Config{Env: []string{"PATH=/bin", "FROM_IMAGE=yes"}, WorkingDir: "/srv", User: "ann"})
}

// push puts an image into the registry and returns its reference.
func (r *imageRegistry) push(repository string, img v1.Image) (string, error) {
	ref, err := name.ParseReference(r.host()+"/"+repository, name.Insecure)
	if err != nil {
		return "", err
	}
	return ref.String(), remote.Write(ref, img)
}

// visitorImage is the reference of an image that holds the base userland and
// the program tests/visitor.
var visitorImage string

// pushVisitor builds the program, and the image around it.
func (r *imageRegistry) pushVisitor() error {
	bin, err := platform.Bin()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sirocco-visitor-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program := filepath.Join(dir, "visitor")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-o", program, "../visitor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the visitor: %w: %s", err, out)
	}
	names, err := exec.Command(filepath.Join(bin, "guest", "base")).Output()
	if err != nil {
		return fmt.Errorf("list the base userland: %w", err)
	}
	base, err1 := os.ReadFile(filepath.Join(bin, "guest", "base"))
	visitor, err2 := os.ReadFile(program)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	files := []file{{name: "bin/base", body: string(base), mode: 0o755}, {name: "bin/visitor", body: string(visitor), mode: 0o755},
		{name: "etc/passwd", body: "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/tmp:/bin/sh\n", mode: 0o644}, {name: "tmp/", mode: 0o1777}, {name: "root/", mode: 0o700}}
	for _, applet := range strings.Fields(string(names)) {
		files = append(files, file{name: "bin/" + applet, link: "base"})
	}
	all, err := layer(files...)
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, all)
	if err != nil {
		return err
	}
	if img, err = mutate.Config(img, v1.Config{Env: []string{"PATH=/bin"}, WorkingDir: "/root"}); err != nil {
		return err
	}
	visitorImage, err = r.push("tests/visitor:1", img)
	return err
}

// brokenImage has a layer that is cut short.
func brokenImage(t *testing.T) v1.Image {
	t.Helper()
	whole, err := layer(file{name: "bin/sh", body: strings.Repeat("x", 100_000), mode: 0o755})
	if err != nil {
		t.Fatal(err)
	}
	packed, err := whole.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(packed)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(raw[:50_000], types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	return img
}
