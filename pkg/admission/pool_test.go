package admission

import (
	"testing"

	"github.com/sirocco-run/sirocco/pkg/fault"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// A pool is refused or accepted as a create with its template is, and has the
// template of that create; declaring what came back changes nothing.
func TestPoolsAreAdmittedAsCreatesAre(t *testing.T) {
	image := rapid.SampledFrom([]string{"", "base", "host", "registry.example.com/app:1", "a b", "../x"})
	millis := rapid.SampledFrom([]int32{0, 0, -1, 50, 500, 2000, 100_000})
	bytes := rapid.SampledFrom([]int64{0, 0, -1, 1, 64 << 20, 1 << 30, 1 << 50})
	cidrs := rapid.SliceOfN(rapid.SampledFrom([]string{"1.2.3.0/24", "4.5.6.7", "x"}), 0, 2)
	counts := rapid.Int32Range(-2, MaxWarm+2)
	rapid.Check(t, func(t *rapid.T) {
		template := &siroccov1.Template{Image: image.Draw(t, "image")}
		if rapid.Bool().Draw(t, "resources") {
			template.Resources = &siroccov1.Resources{
				CpuRequestMillis: millis.Draw(t, "cpu request"), CpuLimitMillis: millis.Draw(t, "cpu"),
				MemoryRequestBytes: bytes.Draw(t, "memory request"), MemoryLimitBytes: bytes.Draw(t, "memory"),
			}
		}
		if rapid.Bool().Draw(t, "network") {
			template.Network = &siroccov1.NetworkPolicy{
				Mode: siroccov1.NetworkMode(rapid.Int32Range(0, 4).Draw(t, "mode")), AllowedCidrs: cidrs.Draw(t, "ranges"),
			}
		}
		req := &siroccov1.SetPoolRequest{Name: "web", Template: template, Warm: counts.Draw(t, "warm"), Max: counts.Draw(t, "max")}
		asked := proto.CloneOf(req)
		spec, refused := Normalize(&siroccov1.CreateSandboxRequest{Image: template.GetImage(), Resources: template.GetResources(), Network: template.GetNetwork()}, DefaultLimits())
		fits := req.Warm >= 0 && req.Warm <= MaxWarm && (req.Max == 0 || req.Max >= req.Warm && req.Max <= MaxWarm)

		pool, err := NormalizePool(req, DefaultLimits())
		if !proto.Equal(req, asked) {
			t.Fatalf("the request was changed to %v", req)
		}
		if (err == nil) != (refused == nil && fits) {
			t.Fatalf("%v: got %v; a create: %v", req, err, refused)
		}
		if err != nil {
			if f := fault.From(err); f.Code != fault.InvalidArgument || refused != nil && f.Field != "template."+fault.From(refused).Field {
				t.Fatalf("got %v; a create: %v", err, refused)
			}
			return
		}
		want := &siroccov1.Template{Image: spec.GetImage(), Resources: spec.GetResources(), Network: spec.GetNetwork()}
		if !proto.Equal(pool.GetTemplate(), want) || pool.GetName() != "web" || pool.GetWarm() != req.GetWarm() || pool.GetMax() != req.GetMax() {
			t.Fatalf("got %v; a create has %v", pool, want)
		}
		again, err := NormalizePool(&siroccov1.SetPoolRequest{Name: "web", Template: pool.GetTemplate(), Warm: pool.GetWarm(), Max: pool.GetMax()}, DefaultLimits())
		if err != nil || !proto.Equal(again, pool) {
			t.Fatalf("declared again: %v, %v; want %v", again, err, pool)
		}
	})
}

func TestPoolNames(t *testing.T) {
	for name, ok := range map[string]bool{"web": true, "Web_1-b": true, "": false, "a.b": false, "a*": false, "a b": false} {
		if _, err := NormalizePool(&siroccov1.SetPoolRequest{Name: name}, DefaultLimits()); (err == nil) != ok || err != nil && fault.From(err).Field != "name" {
			t.Errorf("%q: %v", name, err)
		}
	}
}
