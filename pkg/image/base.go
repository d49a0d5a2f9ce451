package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/crypto/x509roots/fallback/bundle"

	"github.com/sirocco-run/sirocco/guest/base/applet"
	"github.com/sirocco-run/sirocco/pkg/image/erofs"
	"github.com/sirocco-run/sirocco/pkg/image/layer"
)

// searchPath is the PATH of the built-in images.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// baseFiles are the files of the base image beside its program, by name.
func baseFiles() map[string]string {
	return map[string]string{
		"/etc/passwd":                        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"/etc/group":                         "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n",
		"/etc/nsswitch.conf":                 "passwd: files\ngroup: files\nhosts: files dns\n",
		"/etc/hosts":                         "127.0.0.1 localhost\n::1 localhost\n",
		"/etc/resolv.conf":                   "",
		"/etc/os-release":                    "ID=sirocco\nNAME=Sirocco\nPRETTY_NAME=\"Sirocco base\"\n",
		"/etc/profile":                       "export PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}\n",
		"/etc/ssl/certs/ca-certificates.crt": rootCertificates(),
	}
}

// rootCertificates are those of the Mozilla store as PEM. Roots that are only
// trusted under conditions that PEM cannot express are left out.
func rootCertificates() string {
	var b bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate})
		}
	}
	return b.String()
}

// base returns the built-in image, building it if this is the first time with
// these programs.
func (s *Store) base(ctx context.Context) (Image, error) {
	if s.opt.Base == "" {
		return Image{}, fmt.Errorf("%w: this node has no base image", ErrNotFound)
	}
	sum, err := s.files.sum(s.opt.Base)
	if err != nil {
		return Image{}, fmt.Errorf("read base program: %w", err)
	}
	id := sha256.New()
	fmt.Fprintln(id, "base", format, s.opt.Platform, sum)
	for _, n := range applet.Names() {
		fmt.Fprintln(id, n)
	}
	digest := "sha256:" + hex.EncodeToString(id.Sum(nil))
	img, err := s.load(ctx, digest)
	if errors.Is(err, ErrNotFound) {
		img, err = s.buildBase(ctx, digest, sum)
	}
	return img, err
}

func (s *Store) buildBase(ctx context.Context, digest, sum string) (Image, error) {
	w, err := s.newWorkdir()
	if err != nil {
		return Image{}, err
	}
	defer w.remove()
	m := manifest{Digest: digest, Source: Base, Kind: KindBase, Config: Config{
		Env: []string{searchPath, "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"}, Cmd: []string{"/bin/sh"}, WorkingDir: "/root"}}
	return s.build(ctx, w, m, func(_ context.Context, out *erofs.Writer) (*layer.Tree, error) {
		return s.baseTree(out, sum)
	})
}

func (s *Store) baseTree(out *erofs.Writer, sum string) (*layer.Tree, error) {
	t := layer.NewTree()
	dirs := []struct {
		name string
		perm uint32
		id   uint32
	}{
		{"/bin", 0o755, 0}, {"/etc", 0o755, 0}, {"/root", 0o700, 0}, {"/home", 0o755, 0}, {"/home/user", 0o755, 1000},
		{"/run", 0o755, 0}, {"/tmp", 0o1777, 0}, {"/usr", 0o755, 0}, {"/usr/local", 0o755, 0}, {"/usr/local/bin", 0o755, 0},
		{"/var", 0o755, 0}, {"/var/tmp", 0o1777, 0}, {"/var/log", 0o755, 0}, {"/srv", 0o755, 0}, {"/opt", 0o755, 0}, {"/mnt", 0o755, 0},
	}
	for _, d := range dirs {
		n, err := t.Mkdir(d.name, d.perm)
		if err != nil {
			return nil, err
		}
		n.UID, n.GID = d.id, d.id
	}
	f, err := os.Open(s.opt.Base)
	if err != nil {
		return nil, fmt.Errorf("open base program: %w", err)
	}
	defer f.Close()
	got := sha256.New()
	ext, err := out.Add(io.TeeReader(f, got))
	if err != nil {
		return nil, err
	}
	if hex.EncodeToString(got.Sum(nil)) != sum {
		return nil, fmt.Errorf("%w: the base program was replaced while the image was built", ErrUnavailable)
	}
	if err := t.Put("/bin/"+applet.Program, &erofs.Node{Mode: erofs.ModeRegular | 0o755, Data: ext}); err != nil {
		return nil, err
	}
	links := map[string]string{"/sbin": "bin", "/usr/bin": "../bin", "/usr/sbin": "../bin", "/var/run": "../run"}
	for _, n := range applet.Names() {
		links["/bin/"+n] = applet.Program
	}
	for name, target := range links {
		if err := t.Put(name, &erofs.Node{Mode: erofs.ModeSymlink | 0o777, Target: target}); err != nil {
			return nil, err
		}
	}
	for name, content := range baseFiles() {
		ext, err := out.Add(strings.NewReader(content))
		if err != nil {
			return nil, err
		}
		if err := t.Put(name, &erofs.Node{Mode: erofs.ModeRegular | 0o644, Data: ext}); err != nil {
			return nil, err
		}
	}
	return t, nil
}
