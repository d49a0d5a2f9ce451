package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/sirocco-run/sirocco/pkg/image/erofs"
	"github.com/sirocco-run/sirocco/pkg/image/layer"
)

const (
	// maxConfig limits the manifest and the configuration, in bytes.
	maxConfig = 8 << 20
	maxLayers = 512
	// downloads is how many blobs of one image are fetched at a time.
	downloads = 3
	attempts  = 4
)

// canonical is the full form of a reference, or "".
func canonical(ref string) string {
	r, err := name.ParseReference(ref)
	if err != nil {
		return ""
	}
	return r.Name()
}

// fromRegistry returns the image of a reference, from the disk if it can.
func (s *Store) fromRegistry(ctx context.Context, ref name.Reference) (Image, error) {
	if d, ok := ref.(name.Digest); ok {
		if img, err := s.load(ctx, d.DigestStr()); err == nil {
			img.Source = ref.Name()
			return img, nil
		}
	}
	known, err := s.readName(ref.Name())
	if err == nil {
		_, fixed := ref.(name.Digest)
		if fixed || time.Since(known.At) < s.opt.TagTTL {
			if img, err := s.load(ctx, known.Digest); err == nil {
				img.Source = ref.Context().Name() + "@" + known.Digest
				return img, nil
			}
		}
	}
	img, err := s.pull(ctx, ref)
	if errors.Is(err, ErrUnavailable) && known.Digest != "" {
		if old, lerr := s.load(ctx, known.Digest); lerr == nil {
			s.log.Warn("registry is away, using the last known image", "ref", ref.Name(), "digest", known.Digest, "error", err)
			old.Source = ref.Context().Name() + "@" + known.Digest
			return old, nil
		}
	}
	return img, err
}

// pull asks the registry what ref means now and fetches it if it is not here.
func (s *Store) pull(ctx context.Context, ref name.Reference) (Image, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.opt.PullTimeout,
		fmt.Errorf("%w: %s: the pull took longer than %s", ErrUnavailable, ref.Name(), s.opt.PullTimeout))
	defer cancel()
	fail := func(err error) (Image, error) {
		if cause := context.Cause(ctx); cause != nil && errors.Is(cause, ErrUnavailable) {
			return Image{}, cause
		}
		return Image{}, registryError(ref.Name(), err)
	}
	tr, err := s.transport(ref.Context().RegistryStr())
	if err != nil {
		return fail(err)
	}
	defer tr.CloseIdleConnections()
	puller, err := remote.NewPuller(remote.WithContext(ctx), remote.WithTransport(tr),
		remote.WithAuthFromKeychain(s.opt.Keychain), remote.WithPlatform(s.platform), remote.WithUserAgent("sirocco"),
		remote.WithRetryBackoff(remote.Backoff{Duration: s.retryWait, Factor: 3, Jitter: 0.1, Steps: attempts - 1}))
	if err != nil {
		return fail(err)
	}
	desc, err := puller.Get(ctx, ref)
	if err != nil {
		return fail(err)
	}
	if len(desc.Manifest) > maxConfig {
		return fail(fmt.Errorf("%w: manifest of %d bytes", ErrTooLarge, len(desc.Manifest)))
	}
	remoteImg, err := desc.Image()
	if err != nil {
		return fail(err)
	}
	digest, err := remoteImg.Digest()
	if err != nil {
		return fail(err)
	}
	var img Image
	for range attempts {
		img, err = s.flights.do(ctx, s.ctx, "digest "+digest.String(), func(ctx context.Context) (Image, error) {
			img, err := s.load(ctx, digest.String())
			if !errors.Is(err, ErrNotFound) {
				return img, err
			}
			return s.fetch(ctx, puller, ref, digest.String(), remoteImg)
		})
		// Another reference to the same image may have been fetching it, and
		// have been given up.
		if !errors.Is(err, context.Canceled) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return fail(err)
	}
	img.Source = ref.Context().Name() + "@" + digest.String()
	if err := s.writeName(alias{Name: ref.Name(), Digest: digest.String(), At: time.Now()}); err != nil {
		return fail(err)
	}
	return img, nil
}

// fetch downloads the layers to disk, each checked against its digest, and
// builds the image from them.
func (s *Store) fetch(ctx context.Context, puller *remote.Puller, ref name.Reference, digest string, img v1.Image) (Image, error) {
	begin := time.Now()
	m, err := img.Manifest()
	if err != nil {
		return Image{}, registryError(ref.Name(), err)
	}
	var total int64
	for _, l := range m.Layers {
		if l.Size < 0 || total+l.Size < total {
			return Image{}, fmt.Errorf("%w: %s: layer of %d bytes", ErrInvalid, ref.Name(), l.Size)
		}
		total += l.Size
	}
	switch {
	case m.Config.Size > maxConfig || m.Config.Size < 0:
		return Image{}, fmt.Errorf("%w: %s: configuration of %d bytes", ErrTooLarge, ref.Name(), m.Config.Size)
	case len(m.Layers) > maxLayers:
		return Image{}, fmt.Errorf("%w: %s: %d layers", ErrTooLarge, ref.Name(), len(m.Layers))
	case total > s.opt.MaxImageBytes:
		return Image{}, fmt.Errorf("%w: %s: layers of %d bytes, at most %d are allowed", ErrTooLarge, ref.Name(), total, s.opt.MaxImageBytes)
	}
	var cfg *v1.ConfigFile
	err = s.again(ctx, "configuration", func() (err error) {
		cfg, err = configuration(ctx, puller, ref.Context().Digest(m.Config.Digest.String()))
		return err
	})
	if err != nil {
		return Image{}, registryError(ref.Name(), err)
	}
	run, err := s.runConfig(cfg)
	if err != nil {
		return Image{}, fmt.Errorf("%s: %w", ref.Name(), err)
	}
	layers, err := img.Layers()
	if err != nil {
		return Image{}, registryError(ref.Name(), err)
	}
	if len(layers) != len(cfg.RootFS.DiffIDs) {
		return Image{}, fmt.Errorf("%w: %s: %d layers, but the configuration names %d", ErrInvalid, ref.Name(), len(layers), len(cfg.RootFS.DiffIDs))
	}
	w, err := s.newWorkdir()
	if err != nil {
		return Image{}, err
	}
	defer w.remove()
	s.log.Info("pulling image", "ref", ref.Name(), "digest", digest, "layers", len(layers), "bytes", total)
	progress := s.report(ctx, ref.Name(), total)
	defer progress.stop()

	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(downloads)
	for i, l := range layers {
		g.Go(func() error {
			name := fmt.Sprintf("layer-%d", i)
			return s.again(gctx, name, func() error { return download(l, w.file(name), &progress.done) })
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return Image{}, registryError(ref.Name(), err)
	}
	desc := manifest{Digest: digest, Source: ref.Context().Name() + "@" + digest, Kind: KindRegistry, Config: run}
	out, err := s.build(ctx, w, desc, func(ctx context.Context, out *erofs.Writer) (*layer.Tree, error) {
		merger := layer.NewMerger(out, s.limits())
		for i, diff := range cfg.RootFS.DiffIDs {
			file := w.file(fmt.Sprintf("layer-%d", i))
			if err := applyBlob(ctx, merger, func() (io.ReadCloser, error) { return os.Open(file) }, diff); err != nil {
				return nil, fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
			}
			// What has been merged need not take space while the rest is.
			_ = os.Remove(file)
		}
		return merger.Tree(), nil
	})
	if err != nil {
		return Image{}, fmt.Errorf("%s: %w", ref.Name(), err)
	}
	s.log.Info("pulled image", "ref", ref.Name(), "digest", digest, "bytes", out.Size, "took", time.Since(begin))
	s.touch(digest)
	if _, err := s.Collect(); err != nil {
		s.log.Warn("collecting images failed", "error", err)
	}
	return out, nil
}

func (s *Store) limits() layer.Limits {
	return layer.Limits{Entries: s.opt.MaxImageEntries, Bytes: s.opt.MaxImageBytes}
}

// again calls f until it succeeds, ends for another reason than the network, or
// has been tried often enough.
func (s *Store) again(ctx context.Context, what string, f func() error) error {
	wait := s.retryWait
	for try := 1; ; try++ {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if try == attempts || !errors.Is(registryError("", err), ErrUnavailable) {
			return err
		}
		s.log.Warn("download failed, trying again", "of", what, "attempt", try, "error", err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
			wait *= 2
		}
	}
}

// configuration fetches that of an image. It does not go through v1.Image, which
// after a broken download remembers the part it got.
func configuration(ctx context.Context, puller *remote.Puller, ref name.Digest) (*v1.ConfigFile, error) {
	l, err := puller.Layer(ctx, ref)
	if err != nil {
		return nil, err
	}
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxConfig {
		return nil, fmt.Errorf("%w: configuration of more than %d bytes", ErrTooLarge, maxConfig)
	}
	return v1.ParseConfigFile(bytes.NewReader(b))
}

// download stores one blob in a file.
func download(l v1.Layer, file string, done *atomic.Int64) error {
	r, err := l.Compressed()
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, counted{r, done})
	if err := errors.Join(err, f.Close()); err != nil {
		done.Add(-n)
		return err
	}
	return nil
}

// progressReport tells of a pull once a second.
type progressReport struct {
	done atomic.Int64
	stop func()
}

func (s *Store) report(ctx context.Context, ref string, total int64) *progressReport {
	p := &progressReport{}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for n := 1; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if s.opt.Progress != nil {
				s.opt.Progress(Progress{Ref: ref, Done: p.done.Load(), Total: total})
			}
			if n%5 == 0 {
				s.log.Info("pulling image", "ref", ref, "done", p.done.Load(), "bytes", total)
			}
		}
	}()
	p.stop = func() { cancel(); <-ended }
	return p
}
