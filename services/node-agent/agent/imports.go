package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/image"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// imports brings images that were imported (`sirocco image import`) from the
// region's object store to this node, when a sandbox first wants them.
type imports struct {
	js     jetstream.JetStream
	images images

	mu sync.Mutex
	// have is the digest of the archive that a name was fetched from.
	have map[string]string
}

func newImports(js jetstream.JetStream, images images) *imports {
	return &imports{js: js, images: images, have: map[string]string{}}
}

// importer is the part of an image store that takes archives.
type importer interface {
	Import(ctx context.Context, name string, r io.Reader) (image.Image, error)
	List() ([]image.Entry, error)
	Remove(ref string) error
}

// resolve returns an image. A name that was imported leads to the archive that
// was imported last.
func (i *imports) resolve(ctx context.Context, ref string) (image.Image, error) {
	if to, ok := i.images.(importer); ok && image.CheckName(ref) == nil {
		if err := i.fetch(ctx, to, ref); err != nil {
			return image.Image{}, err
		}
	}
	return i.images.Resolve(ctx, ref)
}

// fetch imports the archive of a name unless that has been done. A name that
// was never imported is no error; nor is a bus that is away, since the node may
// have the image.
func (i *imports) fetch(ctx context.Context, to importer, name string) error {
	store, err := i.js.ObjectStore(ctx, subject.BucketImages)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	info, err := store.GetInfo(ctx, name)
	i.mu.Lock()
	defer i.mu.Unlock()
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		delete(i.have, name)
		return forget(to, name)
	}
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	if i.have[name] == info.Digest {
		return nil
	}
	object, err := store.Get(ctx, name)
	if err != nil {
		return fmt.Errorf("fetch imported image %s: %w", name, err)
	}
	_, err = to.Import(ctx, name, object)
	if err = errors.Join(err, object.Close()); err != nil {
		return fmt.Errorf("fetch imported image %s: %w", name, err)
	}
	i.have[name] = info.Digest
	return nil
}

// forget drops an image that was imported under a name and has been removed from
// the region since. Sandboxes that use it keep it; the next ones don't get it.
func forget(from importer, name string) error {
	entries, err := from.List()
	if err != nil {
		return fmt.Errorf("look for imported image %s: %w", name, err)
	}
	if !slices.ContainsFunc(entries, func(e image.Entry) bool { return slices.Contains(e.Names, name) }) {
		return nil
	}
	err = from.Remove(name)
	if errors.Is(err, image.ErrInUse) {
		return fmt.Errorf("%w: the imported image %s has been removed", image.ErrNotFound, name)
	}
	if err != nil && !errors.Is(err, image.ErrNotFound) {
		return fmt.Errorf("remove imported image %s: %w", name, err)
	}
	return nil
}
