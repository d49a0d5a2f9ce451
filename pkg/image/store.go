package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Options configure a Store. Zero values mean the defaults given.
type Options struct {
	// Dir holds everything the store keeps. Required.
	Dir string
	// Supervisor is the program that becomes /.sirocco/init. Required.
	Supervisor string
	// Base is the program of the base image. Without it there is no base image.
	Base string
	// BaseNet is the program of the base image's network commands, a build of
	// its own so that the others start faster. Default: Base with "-net" added
	// if there is such a file; otherwise Base has to have these commands too.
	BaseNet string
	// Keychain gives the credentials for registries; default: the docker
	// configuration of the user this process runs as.
	Keychain authn.Keychain
	// PrivateRegistries lists registries ("host" or "host:port") that may have
	// loopback or private addresses. Others may not, because a tenant chooses
	// the reference and this machine makes the connection.
	PrivateRegistries []string
	// Platform is "os/arch"; default: linux and this machine's architecture.
	Platform string
	// MaxBytes is how much disk registry images may take before the least
	// recently used ones go; default 20 GiB.
	MaxBytes int64
	// MaxImageBytes and MaxImageEntries limit one image: the bytes of its
	// unpacked layers, and their entries; default 16 GiB and 1,000,000.
	MaxImageBytes   int64
	MaxImageEntries int
	// TagTTL is how long a tag is believed to still mean the same digest;
	// default 5 minutes. While the registry is away it is believed for longer.
	TagTTL time.Duration
	// PullTimeout limits one pull; default 20 minutes. StallTimeout limits how
	// long a download may make no progress; default 30 s.
	PullTimeout, StallTimeout time.Duration
	// Progress is told how pulls go, at most once a second for each; it must
	// not block. Default: only the log is told.
	Progress func(Progress)
	// Logger; default discards.
	Logger *slog.Logger
}

// Progress is how far a pull is.
type Progress struct {
	Ref string
	// Done and Total count compressed bytes.
	Done, Total int64
}

// Store keeps images. Make it with New.
type Store struct {
	opt      Options
	platform v1.Platform
	log      *slog.Logger
	flights  flights
	files    fileHashes

	ctx    context.Context // ends with Close; pulls outlive their callers
	cancel context.CancelFunc
	ready  sync.Once
	readyE error

	mu     sync.Mutex
	inUse  map[string]*use // by digest
	closed bool

	// hostGen and hostDigest are what the host image was, for one supervisor.
	// Only the flight that resolves it uses them.
	hostGen, hostDigest string

	retryWait time.Duration // between attempts to download a blob
	gcGrace   time.Duration // an image used that recently is not collected
}

// New returns a store. It touches nothing yet. Errors: what is wrong with opt.
func New(opt Options) (*Store, error) {
	if opt.Dir == "" || opt.Supervisor == "" {
		return nil, errors.New("image store: Dir and Supervisor are required")
	}
	def := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	wait := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&opt.MaxBytes, 20<<30)
	def(&opt.MaxImageBytes, 16<<30)
	if opt.MaxImageEntries <= 0 {
		opt.MaxImageEntries = 1_000_000
	}
	wait(&opt.TagTTL, 5*time.Minute)
	wait(&opt.PullTimeout, 20*time.Minute)
	wait(&opt.StallTimeout, 30*time.Second)
	if opt.Keychain == nil {
		opt.Keychain = authn.DefaultKeychain
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.Platform == "" {
		opt.Platform = "linux/" + runtime.GOARCH
	}
	platform, err := v1.ParsePlatform(opt.Platform)
	if err != nil {
		return nil, fmt.Errorf("image store: platform %q: %w", opt.Platform, err)
	}
	dir, err := filepath.Abs(opt.Dir)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	opt.Dir = dir
	ctx, cancel := context.WithCancel(context.Background())
	return &Store{
		opt: opt, platform: *platform, log: opt.Logger, ctx: ctx, cancel: cancel,
		inUse: map[string]*use{}, retryWait: 300 * time.Millisecond, gcGrace: time.Minute,
	}, nil
}

// registryForm is what the name of a registry looks like: a host name or an
// address, and a port perhaps.
var registryForm = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?$`)

// Close ends running pulls and waits for them. Images in use stay usable, but
// no longer protected from another store on the same directory.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	for digest, u := range s.inUse {
		_ = u.lock.Close()
		delete(s.inUse, digest)
	}
	s.mu.Unlock()
	s.cancel()
	s.flights.wait()
	return nil
}

// prepare makes the folders, and removes what a crash left behind.
func (s *Store) prepare() error {
	s.ready.Do(func() {
		for _, d := range []string{"images", "names", "tmp"} {
			if err := os.MkdirAll(filepath.Join(s.opt.Dir, d), 0o700); err != nil {
				s.readyE = fmt.Errorf("image store: %w", spaceError(err))
				return
			}
		}
		s.sweepTemp()
	})
	if s.readyE != nil {
		return s.readyE
	}
	if s.ctx.Err() != nil {
		return ErrClosed
	}
	return nil
}

// Resolve returns the image that ref means: "base", "host", the name of an
// imported image, or a registry reference. It is pulled or built if need be;
// callers who want the same image share the work, which goes on as long as one
// of them waits. Errors: all of this package but ErrInUse; the context's.
//
// The image is safe from collection for a minute; whoever uses it for longer
// calls Acquire.
func (s *Store) Resolve(ctx context.Context, ref string) (Image, error) {
	if err := s.prepare(); err != nil {
		return Image{}, err
	}
	img, err := s.resolve(ctx, ref)
	if err != nil {
		return Image{}, err
	}
	img.Ref = ref
	s.touch(img.Digest)
	return img, nil
}

func (s *Store) resolve(ctx context.Context, ref string) (Image, error) {
	switch ref {
	case "":
		return Image{}, fmt.Errorf("%w: empty name", ErrInvalid)
	case Base:
		return s.flights.do(ctx, s.ctx, "base", s.base)
	case Host:
		return s.flights.do(ctx, s.ctx, "host", s.host)
	}
	if len(ref) > 512 {
		return Image{}, fmt.Errorf("%w: name of %d bytes", ErrInvalid, len(ref))
	}
	// A name that was imported hides a registry reference that reads the same.
	local, digest, pinned := strings.Cut(ref, "@")
	if n, err := s.readName(local); err == nil && n.Imported && (!pinned || digest == n.Digest) {
		return s.flights.do(ctx, s.ctx, "digest "+n.Digest, func(ctx context.Context) (Image, error) {
			return s.load(ctx, n.Digest)
		})
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return Image{}, fmt.Errorf("%w: %q is no image reference: %w", ErrInvalid, ref, err)
	}
	if !registryForm.MatchString(parsed.Context().RegistryStr()) {
		return Image{}, fmt.Errorf("%w: %q is no image reference: bad registry name", ErrInvalid, ref)
	}
	return s.flights.do(ctx, s.ctx, "ref "+parsed.Name(), func(ctx context.Context) (Image, error) {
		return s.fromRegistry(ctx, parsed)
	})
}
