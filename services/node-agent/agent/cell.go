package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/guest"
	"github.com/sirocco-run/sirocco/pkg/image"
	"github.com/sirocco-run/sirocco/pkg/network"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// bootTimeout bounds the time from the creation of a cell until its supervisor
// answers.
const bootTimeout = 20 * time.Second

// cell is an isolated machine with its supervisor at rest: all of a sandbox that
// follows from its template, and nothing that is its tenant's. It becomes a
// sandbox's once, and is never used again.
//
// It has an id of its own, by which its folder, cgroup and network slot are found
// on this host: a warm one is there before the sandbox that will have it.
type cell struct {
	id      string
	key     string // of its template
	secret  []byte // opens its supervisor
	image   image.Image
	slot    *network.Slot
	sandbox runtime.Sandbox
	free    func() // gives back the image; once
	built   time.Time
	runtime string        // its version
	took    time.Duration // to make it, without waiting for a turn; 0 if not known

	mu      sync.Mutex
	client  *guest.Client // nil while there is no connection
	dialing chan struct{} // closed when the dial under way has ended; nil if none
}

// entry is what the journal keeps of a cell.
func (b *cell) entry() *cellEntry {
	return &cellEntry{ID: b.id, Key: b.key, Secret: b.secret, Image: b.image, Built: b.built, Runtime: b.runtime}
}

// newCellID returns an id that no cell had before, as long as a sandbox's: runsc
// finds by prefix.
func newCellID() string {
	return "ce-" + strings.TrimPrefix(sandboxid.New(), sandboxid.Prefix)
}

// template is what a cell is made from.
type template struct {
	key string
	*siroccov1.Template
}

// templateOf returns the template of a request.
func templateOf(spec *siroccov1.CreateSandboxRequest) template {
	return template{record.TemplateKey(spec), record.TemplateOf(spec)}
}

// cells makes cells, and knows which there are on this node.
type cells struct {
	parts   parts
	imports *imports
	// stage begins one stage of a start: see Agent.stage.
	stage func(ctx context.Context, name string) (context.Context, func())
	turns chan struct{} // has room for the builds that go on at a time
	// setups has room for the cells that are set up at a time: of a hundred that are
	// wanted at once, the first are then ready early, and the last no later.
	setups chan struct{}
	// ends has room for the sandboxes that are taken down at a time, for the same
	// reason.
	ends turnstile
	gone func(id string) // told when nothing of a cell is left

	mu   sync.Mutex
	held map[string]bool // ids whose resources are somebody's
}

// haste is when a cell is wanted.
type haste bool

// A cell that is built ahead gets what the others leave of the processors, until it
// is claimed.
const (
	now   haste = true
	ahead haste = false
)

// build makes a cell of a template. On an error nothing of it stays.
func (c *cells) build(ctx context.Context, t template, when haste) (_ *cell, err error) {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return nil, fmt.Errorf("make the supervisor's secret: %w", err)
	}
	b := &cell{id: newCellID(), key: t.key, secret: []byte(hex.EncodeToString(secret)), built: time.Now(), runtime: c.parts.runtime.Version()}
	c.hold(b.id)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.destroy(ctx, b))
		}
	}()
	if err := c.prepare(ctx, b, t); err != nil {
		return nil, err
	}
	// More at a time would only be slower together.
	_, end := c.stage(ctx, "turn")
	select {
	case c.turns <- struct{}{}:
		end()
	case <-ctx.Done():
		end()
		return nil, ctx.Err()
	}
	defer func() { <-c.turns }()
	began := time.Now()
	err = c.boot(ctx, b, t, when)
	b.took = time.Since(began)
	return b, err
}

// prepare gets the image and the network, at the same time.
func (c *cells) prepare(ctx context.Context, b *cell, t template) error {
	got := make(chan error, 1)
	go func() {
		ctx, end := c.stage(ctx, "network")
		defer end()
		var err error
		b.slot, err = c.parts.slots.Acquire(ctx, b.id, policyOf(t.GetNetwork()))
		got <- err
	}()
	ictx, end := c.stage(ctx, "image")
	img, err := c.imports.resolve(ictx, t.GetImage())
	end()
	if nerr := <-got; nerr != nil && err == nil {
		err = fmt.Errorf("prepare the network: %w", nerr)
	}
	if err != nil {
		return err
	}
	b.image = img
	b.free, err = c.parts.images.Acquire(img.Digest)
	return err
}

// boot creates the machine and waits for its supervisor.
func (c *cells) boot(ctx context.Context, b *cell, t template, when haste) error {
	cctx, end := c.stage(ctx, "create")
	spec := b.spec(t)
	spec.Background = when == ahead
	sandbox, err := c.parts.runtime.Create(cctx, spec)
	end()
	if err != nil {
		return fmt.Errorf("create the sandbox: %w", err)
	}
	b.sandbox = sandbox
	bctx, end := c.stage(ctx, "boot")
	defer end()
	bctx, cancel := context.WithTimeout(bctx, bootTimeout)
	defer cancel()
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		client, err := b.guest(bctx)
		if err == nil && when == ahead {
			// A claim has less to do then. An image whose user is wrong fails the
			// sandbox, which can say so.
			_ = client.Configure(bctx, b.setup())
		}
		if err == nil {
			return nil
		}
		select {
		case <-sandbox.Done():
			return b.brokenError()
		case <-bctx.Done():
			return fmt.Errorf("reach the supervisor: %w", errors.Join(bctx.Err(), err))
		case <-time.After(wait):
		}
	}
}

// spec is what the runtime makes of a cell with an image and a network.
func (b *cell) spec(t template) runtime.Spec {
	r := t.GetResources()
	return runtime.Spec{
		ID: b.id, Rootfs: b.image.Rootfs, Hostname: "sandbox", NetNS: b.slot.NetNS, Args: []string{image.SupervisorPath},
		Env: []string{guest.SecretEnv + "=" + string(b.secret), "GOMAXPROCS=1"},
		Resources: runtime.Resources{
			CPUMillis: int64(r.GetCpuLimitMillis()), MemoryBytes: r.GetMemoryLimitBytes(),
			DiskBytes: r.GetDiskLimitBytes(), Pids: int64(r.GetPidsLimit()),
		},
	}
}

// endedError says that the supervisor ended while its sandbox was starting.
type endedError struct{ exit runtime.Exit }

func (e *endedError) Error() string {
	return fmt.Sprintf("the supervisor ended while starting: %+v", e.exit)
}

func (b *cell) brokenError() error { return &endedError{b.sandbox.Exit()} }

// dead says whether the machine has ended.
func (b *cell) dead() bool {
	select {
	case <-b.sandbox.Done():
		return true
	default:
		return false
	}
}

// guest returns the connection to the supervisor, made anew if there is none.
// Callers share one dial.
func (b *cell) guest(ctx context.Context) (*guest.Client, error) {
	for {
		b.mu.Lock()
		if b.client != nil {
			select {
			case <-b.client.Done():
				b.client = nil
			default:
				c := b.client
				b.mu.Unlock()
				return c, nil
			}
		}
		if wait := b.dialing; wait != nil {
			b.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		done := make(chan struct{})
		b.dialing = done
		b.mu.Unlock()

		client, err := guest.Dial(ctx, func(ctx context.Context) (net.Conn, error) {
			return b.sandbox.Dial(ctx, runtime.GuestPort)
		}, b.secret)
		b.mu.Lock()
		b.dialing = nil
		if err == nil {
			b.client = client
		}
		b.mu.Unlock()
		close(done)
		return client, err
	}
}

// errStarting answers who comes too early.
func errStarting() error {
	return &fault.Fault{Code: fault.Unavailable, Message: "the sandbox is still starting", RetryAfter: time.Second}
}

// destroy frees everything that the cell holds on this machine. It may be called
// again, and it ends what it has begun although ctx ends.
func (c *cells) destroy(ctx context.Context, b *cell) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	b.mu.Lock()
	client, free := b.client, b.free
	b.client, b.free = nil, nil
	b.mu.Unlock()
	var errs []error
	if b.sandbox != nil {
		if err := b.sandbox.Destroy(ctx); err != nil && !errors.Is(err, runtime.ErrNotFound) {
			errs = append(errs, fmt.Errorf("destroy sandbox: %w", err))
		}
	}
	if client != nil {
		_ = client.Close()
	}
	if err := c.parts.slots.Release(ctx, b.id); err != nil {
		errs = append(errs, err)
	}
	if free != nil {
		free()
	}
	// What could not be freed is left to the sweep.
	c.mu.Lock()
	delete(c.held, b.id)
	c.mu.Unlock()
	c.gone(b.id)
	return errors.Join(errs...)
}

// hold keeps the sweep away from the resources of an id.
func (c *cells) hold(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held[id] = true
}

// living returns the ids that hold resources.
func (c *cells) living() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := make([]string, 0, len(c.held))
	for id := range c.held {
		ids = append(ids, id)
	}
	return ids
}
