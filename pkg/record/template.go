package record

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
)

// TemplateOf returns the template of a request: what a warm sandbox must have been
// made with to serve it.
func TemplateOf(spec *siroccov1.CreateSandboxRequest) *siroccov1.Template {
	return &siroccov1.Template{Image: spec.GetImage(), Resources: spec.GetResources(), Network: spec.GetNetwork()}
}

// TemplateKey names the template of a request.
func TemplateKey(spec *siroccov1.CreateSandboxRequest) string { return KeyOf(TemplateOf(spec)) }

// KeyOf names a template. It is short and stable.
func KeyOf(t *siroccov1.Template) string {
	network := proto.CloneOf(t.GetNetwork())
	slices.Sort(network.GetAllowedCidrs())
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(&siroccov1.CreateSandboxRequest{
		Image: t.GetImage(), Resources: t.GetResources(), Network: network,
	})
	if err != nil {
		return "" // cannot be: the parts were decoded from the same encoding
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}
