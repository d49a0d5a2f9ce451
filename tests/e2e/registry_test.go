package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	cr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
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
}

// layer makes a layer of files.
func layer(files ...file) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.body)), Typeflag: tar.TypeReg}); err != nil {
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
	one, err1 := layer(file{"bin/sh", string(base), 0o755}, file{"bin/cat", string(base), 0o755}, file{"bin/sleep", string(base), 0o755},
		file{"etc/passwd", "root:x:0:0::/:/bin/sh\nann:x:1000:1000::/:/bin/sh\n", 0o644}, file{"srv/first", "one", 0o644}, file{"srv/gone", "x", 0o644})
	two, err2 := layer(file{"srv/first", "two", 0o644}, file{"srv/.wh.gone", "", 0o644})
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
