package gvisor

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
)

// manifestFile is written last: a folder without it holds no whole checkpoint.
const manifestFile = "manifest.json"

// imageFiles are gVisor's files of a checkpoint, in the order in which it takes them. The
// last is runtime.PagesFile, which gVisor writes from its beginning to its end, one write
// after the other (stateio.FDWriter, for files that are not opened for direct access).
func imageFiles() []string {
	return []string{checkpointfiles.StateFileName, checkpointfiles.PagesMetadataFileName, checkpointfiles.PagesFileName}
}

// manifest says what a folder with a checkpoint has to hold.
type manifest struct {
	// Version is that of the runtime that wrote it.
	Version string               `json:"version"`
	Files   map[string]imageFile `json:"files"`
}

// imageFile is one file. Sum is its SHA-256; of the pages, which may be gigabytes,
// there is none: whoever carries them over a network reads them all anyway, and has
// to check them then.
type imageFile struct {
	Size int64  `json:"size"`
	Sum  string `json:"sha256,omitempty"`
}

// createImage makes the files of a checkpoint.
func createImage(dir string) (files []*os.File, err error) {
	for _, name := range imageFiles() {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			closeAll(files)
			// Only those that were made here.
			for _, f := range files {
				_ = os.Remove(f.Name())
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// removeImage takes back what createImage and describeImage made.
func removeImage(dir string) error {
	var errs []error
	for _, name := range append(imageFiles(), manifestFile) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// describeImage writes the manifest of a checkpoint that is whole.
func describeImage(dir string) error {
	m := manifest{Version: Version, Files: map[string]imageFile{}}
	for _, name := range imageFiles() {
		f, err := readImageFile(dir, name)
		if err != nil {
			return err
		}
		m.Files[name] = f
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestFile), b, 0o600)
}

func readImageFile(dir, name string) (imageFile, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return imageFile{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return imageFile{}, err
	}
	if name == runtime.PagesFile {
		return imageFile{Size: st.Size()}, nil
	}
	h := sha256.New()
	n, err := io.Copy(h, f)
	return imageFile{Size: n, Sum: hex.EncodeToString(h.Sum(nil))}, err
}

// checkImage finds what can be found out without gVisor. Errors: ErrImage,
// ErrIncompatible.
func checkImage(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		return fmt.Errorf("%w: %v", runtime.ErrImage, err)
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("%w: %s: %v", runtime.ErrImage, manifestFile, err)
	}
	if m.Version != Version {
		return fmt.Errorf("%w: it was written by %q, and this is %q", runtime.ErrIncompatible, m.Version, Version)
	}
	for _, name := range imageFiles() {
		got, err := readImageFile(dir, name)
		if err != nil {
			return fmt.Errorf("%w: %v", runtime.ErrImage, err)
		}
		if want := m.Files[name]; got != want {
			return fmt.Errorf("%w: %s is %+v, and should be %+v", runtime.ErrImage, name, got, want)
		}
	}
	return nil
}
