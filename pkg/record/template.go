package record

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// TemplateKey names the template of a request: what a warm sandbox must have
// been made with to serve it (image, resources, network policy). It is short
// and stable.
func TemplateKey(spec *siroccov1.CreateSandboxRequest) string {
	network := proto.CloneOf(spec.GetNetwork())
	slices.Sort(network.GetAllowedCidrs())
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(&siroccov1.CreateSandboxRequest{
		Image: spec.GetImage(), Resources: spec.GetResources(), Network: network,
	})
	if err != nil {
		return "" // cannot be: the parts were decoded from the same encoding
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}
