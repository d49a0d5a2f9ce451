package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"path/filepath"

	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/image"
	"github.com/sirocco-run/sirocco/pkg/network"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// images is what the agent needs of an image store.
type images interface {
	Resolve(ctx context.Context, ref string) (image.Image, error)
	Acquire(digest string) (release func(), err error)
	Close() error
}

// slots is what the agent needs of a network.
type slots interface {
	Run(ctx context.Context) error
	Acquire(ctx context.Context, id string, policy network.Policy) (*network.Slot, error)
	Release(ctx context.Context, id string) error
	Adopt(ctx context.Context, ids []string) (map[string]*network.Slot, error)
	Sweep(ctx context.Context, living []string) ([]string, error)
	Close() error
}

// parts is what sandboxes are made of on this node.
type parts struct {
	runtime runtime.Runtime
	images  images
	slots   slots
}

// noSlots is the network of simulated sandboxes: there is none.
type noSlots struct{}

func (noSlots) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (noSlots) Acquire(_ context.Context, id string, p network.Policy) (*network.Slot, error) {
	return &network.Slot{ID: id, Address: netip.IPv4Unspecified(), Policy: p}, nil
}
func (noSlots) Release(context.Context, string) error { return nil }
func (n noSlots) Adopt(ctx context.Context, ids []string) (map[string]*network.Slot, error) {
	found := make(map[string]*network.Slot, len(ids))
	for _, id := range ids {
		found[id], _ = n.Acquire(ctx, id, network.Policy{})
	}
	return found, nil
}
func (noSlots) Sweep(context.Context, []string) ([]string, error) { return nil, nil }
func (noSlots) Close() error                                      { return nil }

// simImages knows every image that has a name, except those that a test wants
// to be missing.
type simImages struct{}

// MissingImage is the reference that a simulated node does not find.
const MissingImage = "sim.invalid/missing"

func (simImages) Resolve(_ context.Context, ref string) (image.Image, error) {
	if ref == MissingImage {
		return image.Image{}, image.ErrNotFound
	}
	sum := sha256.Sum256([]byte(ref))
	digest := "sha256:" + hex.EncodeToString(sum[:])
	return image.Image{Ref: ref, Digest: digest, Source: ref, Rootfs: runtime.Rootfs{EROFS: "/" + filepath.Base(ref)}}, nil
}
func (simImages) Acquire(string) (func(), error) { return func() {}, nil }
func (simImages) Close() error                   { return nil }

// policyOf returns the network policy of a request.
func policyOf(n *siroccov1.NetworkPolicy) network.Policy {
	switch n.GetMode() {
	case siroccov1.NetworkMode_NETWORK_MODE_BLOCKED:
		return network.Policy{Mode: network.Blocked}
	case siroccov1.NetworkMode_NETWORK_MODE_ALLOWED:
		p := network.Policy{Mode: network.Allowed}
		for _, c := range n.GetAllowedCidrs() {
			if prefix, err := admission.ParseRange(c); err == nil {
				p.Allowed = append(p.Allowed, prefix)
			}
		}
		return p
	}
	return network.Policy{Mode: network.Open}
}
