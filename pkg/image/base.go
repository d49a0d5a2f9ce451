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
	"maps"
	"os"
	"slices"
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
	programs, err := s.basePrograms()
	if err != nil {
		return Image{}, err
	}
	id := sha256.New()
	fmt.Fprintln(id, "base", format, s.opt.Platform)
	for _, p := range programs {
		fmt.Fprintln(id, p.name, p.sum)
	}
	for _, n := range applet.Names() {
		fmt.Fprintln(id, n)
	}
	digest := "sha256:" + hex.EncodeToString(id.Sum(nil))
	img, err := s.load(ctx, digest)
	if errors.Is(err, ErrNotFound) {
		img, err = s.buildBase(ctx, digest, programs)
	}
	return img, err
}

// program is one of the files that are the userland.
type program struct{ name, file, sum string }

func (s *Store) basePrograms() ([]program, error) {
	list := []program{{name: applet.Program, file: s.opt.Base}}
	if net := s.opt.BaseNet; net != "" {
		list = append(list, program{name: applet.NetProgram, file: net})
	} else if _, err := os.Stat(s.opt.Base + "-net"); err == nil {
		list = append(list, program{name: applet.NetProgram, file: s.opt.Base + "-net"})
	}
	for i := range list {
		var err error
		if list[i].sum, err = s.files.sum(list[i].file); err != nil {
			return nil, fmt.Errorf("read base program: %w", err)
		}
	}
	return list, nil
}

func (p program) add(t *layer.Tree, out *erofs.Writer) error {
	f, err := os.Open(p.file)
	if err != nil {
		return fmt.Errorf("open base program: %w", err)
	}
	defer f.Close()
	got := sha256.New()
	ext, err := out.Add(io.TeeReader(f, got))
	if err != nil {
		return err
	}
	if hex.EncodeToString(got.Sum(nil)) != p.sum {
		return fmt.Errorf("%w: the base program was replaced while the image was built", ErrUnavailable)
	}
	return t.Put("/bin/"+p.name, &erofs.Node{Mode: erofs.ModeRegular | 0o755, Data: ext})
}

func (s *Store) buildBase(ctx context.Context, digest string, programs []program) (Image, error) {
	w, err := s.newWorkdir()
	if err != nil {
		return Image{}, err
	}
	defer w.remove()
	m := manifest{Digest: digest, Source: Base, Kind: KindBase, Config: Config{
		Env: []string{searchPath, "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"}, Cmd: []string{"/bin/sh"}, WorkingDir: "/root"}}
	return s.build(ctx, w, m, func(_ context.Context, out *erofs.Writer) (*layer.Tree, error) {
		return baseTree(out, programs)
	})
}

func baseTree(out *erofs.Writer, programs []program) (*layer.Tree, error) {
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
	for _, p := range programs {
		if err := p.add(t, out); err != nil {
			return nil, err
		}
	}
	links := map[string]string{"/sbin": "bin", "/usr/bin": "../bin", "/usr/sbin": "../bin", "/var/run": "../run"}
	for _, n := range applet.Names() {
		links["/bin/"+n] = applet.Program
		if applet.Net(n) && len(programs) > 1 {
			links["/bin/"+n] = applet.NetProgram
		}
	}
	for _, name := range slices.Sorted(maps.Keys(links)) {
		if err := t.Put(name, &erofs.Node{Mode: erofs.ModeSymlink | 0o777, Target: links[name]}); err != nil {
			return nil, err
		}
	}
	files := baseFiles()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		ext, err := out.Add(strings.NewReader(files[name]))
		if err != nil {
			return nil, err
		}
		if err := t.Put(name, &erofs.Node{Mode: erofs.ModeRegular | 0o644, Data: ext}); err != nil {
			return nil, err
		}
	}
	return t, nil
}
