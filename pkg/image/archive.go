package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sirocco-run/sirocco/pkg/image/erofs"
	"github.com/sirocco-run/sirocco/pkg/image/layer"
)

// importName is what an imported image may be called.
var importName = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?$`)

const (
	maxNameLen        = 128
	maxArchiveEntries = 10_000
)

// CheckName says whether an imported image may have the name: lower-case
// letters and digits with single '.', '_' or '-' between them, and a tag after
// a colon perhaps; at most 128 bytes; not "base" or "host". Errors: ErrInvalid.
func CheckName(name string) error {
	if len(name) > maxNameLen || !importName.MatchString(name) || name == Base || name == Host {
		return fmt.Errorf("%w: %q cannot be the name of an image", ErrInvalid, name)
	}
	return nil
}

// Import takes an OCI layout as a tar stream or a docker save archive, packed
// with gzip or zstd perhaps, and gives the image in it a name, taking the name
// from the image that has it. The archive must hold one image for this node's
// platform. Errors: ErrInvalid, ErrTooLarge, ErrNoSpace, the context's, and
// what r returns.
func (s *Store) Import(ctx context.Context, name string, r io.Reader) (Image, error) {
	if err := CheckName(name); err != nil {
		return Image{}, err
	}
	if err := s.prepare(); err != nil {
		return Image{}, err
	}
	w, err := s.newWorkdir()
	if err != nil {
		return Image{}, err
	}
	defer w.remove()
	a, err := s.spool(ctx, w, r)
	if err != nil {
		return Image{}, fmt.Errorf("import %q: %w", name, err)
	}
	defer a.f.Close()
	in, err := a.read(s)
	if err != nil {
		return Image{}, fmt.Errorf("import %q: %w", name, err)
	}
	run, err := s.runConfig(in.config)
	if err != nil {
		return Image{}, fmt.Errorf("import %q: %w", name, err)
	}
	img, err := s.load(ctx, in.digest)
	if errors.Is(err, ErrNotFound) {
		m := manifest{Digest: in.digest, Source: pinned(name, in.digest), Kind: KindImport, Config: run}
		img, err = s.build(ctx, w, m, func(ctx context.Context, out *erofs.Writer) (*layer.Tree, error) {
			merger := layer.NewMerger(out, s.limits())
			for i, diff := range in.config.RootFS.DiffIDs {
				open := func() (io.ReadCloser, error) { return a.open(in.layers[i]) }
				if err := applyBlob(ctx, merger, open, diff); err != nil {
					return nil, fmt.Errorf("layer %d of %d: %w", i+1, len(in.layers), err)
				}
			}
			return merger.Tree(), nil
		})
	}
	if err != nil {
		return Image{}, fmt.Errorf("import %q: %w", name, err)
	}
	if err := s.writeName(alias{Name: name, Digest: in.digest, Imported: true, At: time.Now()}); err != nil {
		return Image{}, err
	}
	s.touch(in.digest)
	s.log.Info("imported image", "name", name, "digest", in.digest, "bytes", img.Size)
	img.Ref, img.Source = name, pinned(name, in.digest)
	return img, nil
}

// archive is a tar file on disk with an index of what is in it. Nothing is
// unpacked: a name in the archive never becomes a name on this machine.
type archive struct {
	f       *os.File
	entries map[string]span
}

type span struct {
	off, size int64
	link      string
}

// contents is the one image that was found in an archive.
type contents struct {
	digest string
	config *v1.ConfigFile
	layers []string // entries of the archive
}

// spool writes the archive to disk and indexes it.
func (s *Store) spool(ctx context.Context, w *workdir, r io.Reader) (*archive, error) {
	plain, err := unpacked(r)
	if err != nil {
		return nil, buildError(err)
	}
	defer plain.Close()
	f, err := os.OpenFile(w.file("archive"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("spool archive: %w", spaceError(err))
	}
	a := &archive{f: f, entries: map[string]span{}}
	if err := a.fill(ctx, plain, s.opt.MaxImageBytes+64<<20); err != nil {
		_ = f.Close()
		return nil, err
	}
	return a, nil
}

func (a *archive) fill(ctx context.Context, r io.Reader, limit int64) error {
	n, err := io.Copy(a.f, io.LimitReader(ctxReader{ctx, r}, limit+1))
	if err != nil {
		return buildError(err)
	}
	if n > limit {
		return fmt.Errorf("%w: archive of more than %d bytes", ErrTooLarge, limit)
	}
	if _, err := a.f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read archive: %w", err)
	}
	tr := tar.NewReader(a.f)
	for count := 0; ; count++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: not a tar archive: %w", ErrInvalid, err)
		}
		if count == maxArchiveEntries {
			return fmt.Errorf("%w: archive of more than %d entries", ErrTooLarge, maxArchiveEntries)
		}
		name := path.Clean("/" + h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			// The reader takes no more than it needs, so the file stands where
			// the content starts.
			off, err := a.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return fmt.Errorf("read archive: %w", err)
			}
			if off+h.Size > n {
				return fmt.Errorf("%w: archive is cut off in %q", ErrInvalid, h.Name)
			}
			a.entries[name] = span{off: off, size: h.Size}
		case tar.TypeSymlink:
			a.entries[name] = span{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			a.entries[name] = span{link: path.Clean("/" + h.Linkname)}
		}
	}
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

func (a *archive) find(name string) (span, error) {
	name = path.Clean("/" + name)
	for range 8 {
		e, ok := a.entries[name]
		if !ok {
			break
		}
		if e.link == "" {
			return e, nil
		}
		name = e.link
	}
	return span{}, fmt.Errorf("%w: archive has no %q", ErrInvalid, name)
}

func (a *archive) open(name string) (io.ReadCloser, error) {
	e, err := a.find(name)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(io.NewSectionReader(a.f, e.off, e.size)), nil
}

// small returns the content of a file that must not be large.
func (a *archive) small(name string) ([]byte, error) {
	e, err := a.find(name)
	if err != nil {
		return nil, err
	}
	if e.size > maxConfig {
		return nil, fmt.Errorf("%w: %q has %d bytes", ErrTooLarge, name, e.size)
	}
	b := make([]byte, e.size)
	if _, err := a.f.ReadAt(b, e.off); err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	return b, nil
}

// blob returns a small blob of an OCI layout after checking its digest.
func (a *archive) blob(h v1.Hash) ([]byte, error) {
	b, err := a.small(blobPath(h))
	if err != nil {
		return nil, err
	}
	if h.Algorithm != "sha256" || hexSum(b) != h.Hex {
		return nil, fmt.Errorf("%w: blob %s: %w", ErrInvalid, h, errDigest)
	}
	return b, nil
}

func blobPath(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// read finds the image. Archives of newer docker versions are both kinds; then
// the OCI layout counts.
func (a *archive) read(s *Store) (contents, error) {
	_, oci := a.entries["/index.json"]
	_, docker := a.entries["/manifest.json"]
	var in contents
	var err error
	switch {
	case oci:
		in, err = a.readLayout(s)
	case docker:
		in, err = a.readDocker()
	default:
		return in, fmt.Errorf("%w: archive has neither index.json (OCI layout) nor manifest.json (docker save)", ErrInvalid)
	}
	if err != nil {
		return in, err
	}
	if len(in.layers) > maxLayers {
		return in, fmt.Errorf("%w: %d layers", ErrTooLarge, len(in.layers))
	}
	if len(in.layers) != len(in.config.RootFS.DiffIDs) {
		return in, fmt.Errorf("%w: %d layers, but the configuration names %d", ErrInvalid, len(in.layers), len(in.config.RootFS.DiffIDs))
	}
	for _, l := range in.layers {
		if _, err := a.find(l); err != nil {
			return in, err
		}
	}
	return in, nil
}

func (a *archive) readLayout(s *Store) (contents, error) {
	b, err := a.small("index.json")
	if err != nil {
		return contents{}, err
	}
	var found []v1.Descriptor
	if err := a.collect(s, b, 0, &found); err != nil {
		return contents{}, err
	}
	if len(found) != 1 {
		return contents{}, fmt.Errorf("%w: archive holds %d images for %s, not one", ErrInvalid, len(found), s.opt.Platform)
	}
	raw, err := a.blob(found[0].Digest)
	if err != nil {
		return contents{}, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return contents{}, fmt.Errorf("%w: manifest: %w", ErrInvalid, err)
	}
	conf, err := a.blob(m.Config.Digest)
	if err != nil {
		return contents{}, err
	}
	in := contents{digest: found[0].Digest.String()}
	if in.config, err = v1.ParseConfigFile(bytes.NewReader(conf)); err != nil {
		return contents{}, fmt.Errorf("%w: configuration: %w", ErrInvalid, err)
	}
	for _, l := range m.Layers {
		in.layers = append(in.layers, blobPath(l.Digest))
	}
	return in, nil
}

// collect gathers the images of an index, and of those inside it, that fit the
// platform. Several names for one image count once.
func (a *archive) collect(s *Store, index []byte, depth int, found *[]v1.Descriptor) error {
	if depth > 4 {
		return fmt.Errorf("%w: indexes nest too deep", ErrInvalid)
	}
	idx, err := v1.ParseIndexManifest(bytes.NewReader(index))
	if err != nil {
		return fmt.Errorf("%w: index: %w", ErrInvalid, err)
	}
next:
	for _, d := range idx.Manifests {
		if d.Platform != nil && !d.Platform.Satisfies(s.platform) {
			continue
		}
		switch {
		case d.MediaType.IsIndex():
			b, err := a.blob(d.Digest)
			if err != nil {
				return err
			}
			if err := a.collect(s, b, depth+1, found); err != nil {
				return err
			}
		case d.MediaType.IsImage():
			for _, have := range *found {
				if have.Digest == d.Digest {
					continue next
				}
			}
			*found = append(*found, d)
		}
	}
	return nil
}

func (a *archive) readDocker() (contents, error) {
	b, err := a.small("manifest.json")
	if err != nil {
		return contents{}, err
	}
	var list []struct {
		Config string
		Layers []string
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return contents{}, fmt.Errorf("%w: manifest.json: %w", ErrInvalid, err)
	}
	if len(list) != 1 {
		return contents{}, fmt.Errorf("%w: archive holds %d images, not one", ErrInvalid, len(list))
	}
	conf, err := a.small(list[0].Config)
	if err != nil {
		return contents{}, err
	}
	in := contents{digest: "sha256:" + hexSum(conf), layers: list[0].Layers}
	if in.config, err = v1.ParseConfigFile(bytes.NewReader(conf)); err != nil {
		return contents{}, fmt.Errorf("%w: configuration: %w", ErrInvalid, err)
	}
	return in, nil
}

func readAlias(file string) (alias, error) {
	var a alias
	b, err := os.ReadFile(file)
	if err != nil {
		return a, err
	}
	err = json.Unmarshal(b, &a)
	return a, err
}
