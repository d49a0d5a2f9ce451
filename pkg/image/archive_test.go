package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// dockerSave is what docker save would write.
func dockerSave(t testing.TB, img v1.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	tag, err := name.NewTag("x/y:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.Write(tag, img, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ociLayout is a layout of images as a tar.
func ociLayout(t testing.TB, imgs ...v1.Image) []byte {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range imgs {
		if err := p.AppendImage(img); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, dir+"/")] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, files)
}

func TestImport(t *testing.T) {
	img := imageOf(t, layerOf(t, map[string]string{"a": "lower"}), layerOf(t, map[string]string{"a": "upper"}))
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(dockerSave(t, img)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		archive []byte
		digest  string
	}{
		{"layout", ociLayout(t, img), digest.String()},
		{"docker", dockerSave(t, img), config.String()},
		{"packed", packed.Bytes(), config.String()},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t, nil)
			got, err := s.Import(t.Context(), "my-app:v1", bytes.NewReader(c.archive))
			if err != nil {
				t.Fatal(err)
			}
			if got.Digest != c.digest || got.Source != "my-app:v1@"+c.digest || content(t, got, "/a") != "upper" || content(t, got, SupervisorPath) != "supervisor" {
				t.Errorf("%+v", got)
			}
			for _, ref := range []string{"my-app:v1", got.Source} {
				if again := resolve(t, s, ref); again.Digest != c.digest {
					t.Errorf("%s: %+v", ref, again)
				}
			}
			list, err := s.List()
			if err != nil || len(list) != 1 || fmt.Sprint(list[0].Names) != "[my-app:v1]" || list[0].Kind != KindImport || list[0].Size == 0 {
				t.Errorf("list %+v, %v", list, err)
			}
			// A second name for the same image keeps it alive.
			if _, err := s.Import(t.Context(), "second", bytes.NewReader(c.archive)); err != nil {
				t.Fatal(err)
			}
			if err := s.Remove("my-app:v1"); err != nil {
				t.Error(err)
			}
			resolve(t, s, "second")
			s.gcGrace, s.opt.MaxBytes = 0, 1
			if removed, err := s.Collect(); err != nil || len(removed) > 0 {
				t.Errorf("an imported image was collected: %v, %v", removed, err)
			}
			if err := s.Remove("second"); err != nil {
				t.Error(err)
			}
			if list, _ := s.List(); len(list) > 0 {
				t.Errorf("still there: %+v", list)
			}
			// A new supervisor gets into imported images too, whose archive is gone.
			if _, err := s.Import(t.Context(), "third", bytes.NewReader(c.archive)); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.opt.Supervisor, []byte("new"), 0o755); err != nil {
				t.Fatal(err)
			}
			if got := resolve(t, s, "third"); content(t, got, SupervisorPath) != "new" || content(t, got, "/a") != "upper" {
				t.Error("not renewed")
			}
		})
	}
}

// replace gives an archive other content for the entries that change returns
// something for.
func replace(t testing.TB, archive []byte, change func(name string, b []byte) []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if b = change(h.Name, b); b == nil {
			continue
		}
		h.Size = int64(len(b))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestImportRefusals(t *testing.T) {
	img := imageOf(t, layerOf(t, map[string]string{"a": "a"}))
	second := imageOf(t, layerOf(t, map[string]string{"b": "b"}))
	good := ociLayout(t, img)
	saved := dockerSave(t, img)
	damage := func(archive []byte, part string) []byte {
		return replace(t, archive, func(name string, b []byte) []byte {
			if strings.Contains(name, part) && len(b) > 10 {
				b = bytes.Clone(b)
				b[len(b)/2] ^= 0x55
			}
			return b
		})
	}
	for _, c := range []struct {
		name    string
		archive []byte
		want    error
	}{
		{"empty", nil, ErrInvalid},
		{"garbage", bytes.Repeat([]byte("garbage!"), 500), ErrInvalid},
		{"other tar", tarOf(t, map[string]string{"a": "b"}), ErrInvalid},
		{"cut off", good[:700], ErrInvalid},
		{"two images", ociLayout(t, img, second), ErrInvalid},
		{"damaged blobs", damage(good, "blobs/"), ErrInvalid},
		{"damaged layers", damage(saved, ".tar.gz"), ErrInvalid},
		{"missing layer", replace(t, saved, func(n string, b []byte) []byte {
			if strings.HasSuffix(n, ".tar.gz") {
				return nil
			}
			return b
		}), ErrInvalid},
		{"config leads out", replace(t, saved, func(n string, b []byte) []byte {
			if n != "manifest.json" {
				return b
			}
			m, _ := json.Marshal([]map[string]any{{"Config": "../../../../etc/passwd", "Layers": []string{"/etc/passwd"}}})
			return m
		}), ErrInvalid},
		{"too large", tarOf(t, map[string]string{"index.json": strings.Repeat(" ", maxConfig+1)}), ErrTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t, nil)
			if _, err := s.Import(t.Context(), "x", bytes.NewReader(c.archive)); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if left, _ := os.ReadDir(s.path("tmp")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	s := newStore(t, nil)
	for _, n := range []string{"", "base", "host", "UPPER", "a/b", "../x", "a b", "-a", ".a", "a:", "a:b:c", "a\x00", strings.Repeat("a", 129)} {
		if _, err := s.Import(t.Context(), n, bytes.NewReader(good)); !errors.Is(err, ErrInvalid) {
			t.Errorf("name %q: %v", n, err)
		}
	}
	broken := errors.New("the sender went away")
	if _, err := s.Import(t.Context(), "x", io.MultiReader(bytes.NewReader(good[:100]), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("a broken stream: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Import(ended, "x", bytes.NewReader(good)); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzArchive(f *testing.F) {
	img := imageOf(f, layerOf(f, map[string]string{"a": "a"}))
	f.Add(ociLayout(f, img))
	f.Add(dockerSave(f, img))
	s := newStore(f, func(o *Options) { o.MaxImageBytes = 1 << 20 })
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := s.Import(t.Context(), "x", bytes.NewReader(b))
		if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrTooLarge) {
			t.Fatalf("unexpected error: %v", err)
		}
	})
}

func TestAllowedAddress(t *testing.T) {
	for _, c := range []struct {
		addr            string
		public, private bool
	}{
		{"8.8.8.8", true, true}, {"2606:4700::1111", true, true},
		{"127.0.0.1", false, true}, {"::1", false, true}, {"10.0.0.1", false, true}, {"192.168.1.1", false, true}, {"fd00::1", false, true},
		{"100.64.0.1", false, true}, {"::ffff:127.0.0.1", false, true}, {"::ffff:169.254.169.254", false, false},
		{"169.254.169.254", false, false}, {"fe80::1", false, false}, {"0.0.0.0", false, false}, {"::", false, false}, {"224.0.0.1", false, false},
	} {
		a := mustAddr(t, c.addr)
		if allowedAddress(a, false) != c.public || allowedAddress(a, true) != c.private {
			t.Errorf("%s: %v and %v", c.addr, allowedAddress(a, false), allowedAddress(a, true))
		}
	}
}
