package admission

import (
	"strings"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// MaxWarm is how many warm sandboxes of one pool a node can be told to keep.
const MaxWarm = 10_000

// NormalizePool returns the pool that a request declares, or an
// InvalidArgument fault that names the first bad field. Its template is that
// of a create with the same image, resources and network policy after
// Normalize, so that the two have one key; the key itself is left out.
func NormalizePool(req *siroccov1.SetPoolRequest, limits Limits) (*siroccov1.Pool, error) {
	if !subject.ValidToken(req.GetName()) {
		return nil, fault.Invalid("name", "%q is not the name of a pool: want 1 to 64 letters, digits, hyphens and underscores", clip(req.GetName()))
	}
	asked := req.GetTemplate()
	spec, err := Normalize(&siroccov1.CreateSandboxRequest{
		Image: asked.GetImage(), Resources: asked.GetResources(), Network: asked.GetNetwork(),
	}, limits)
	if err != nil {
		f := *fault.From(err)
		f.Field = strings.TrimSuffix("template."+f.Field, ".")
		return nil, &f
	}
	if n := req.GetWarm(); n < 0 || n > MaxWarm {
		return nil, fault.Invalid("warm", "%d is out of range: 0 to %d", n, MaxWarm)
	}
	if n := req.GetMax(); n != 0 && (n < req.GetWarm() || n > MaxWarm) {
		return nil, fault.Invalid("max", "%d is out of range: 0 (no bound but demand and budget), or %d to %d", n, max(1, req.GetWarm()), MaxWarm)
	}
	return &siroccov1.Pool{
		Name: req.GetName(), Warm: req.GetWarm(), Max: req.GetMax(),
		Template: &siroccov1.Template{Image: spec.GetImage(), Resources: spec.GetResources(), Network: spec.GetNetwork()},
	}, nil
}
