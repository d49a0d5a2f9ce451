package cli

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A folder is read as the archive of it.
func TestOpenArchive(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"index.json": "{}", "blobs/sha256/aa": "layer"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := openArchive(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var files []string
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			files = append(files, h.Name)
		}
	}
	if slices.Sort(files); !slices.Equal(files, []string{"blobs/sha256/aa", "index.json"}) {
		t.Errorf("files %q", files)
	}
	if _, err := openArchive(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
}
