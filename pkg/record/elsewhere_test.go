package record_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/record"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// TestKeysLeadToOneRegion: whatever the weights say when a request comes again, its key
// leads to the region that it led to at first, and to no second sandbox.
func TestKeysLeadToOneRegion(t *testing.T) {
	store, _ := open(t)
	request := spec(t, &siroccov1.CreateSandboxRequest{})
	other := spec(t, &siroccov1.CreateSandboxRequest{Image: "other"})
	claim := func(key string, spec *siroccov1.CreateSandboxRequest) (*siroccov1.Sandbox, error) {
		sb, _, err := store.Claim(t.Context(), record.Acceptance{Tenant: "acme", Key: key, Spec: spec, Region: "eu", Front: front})
		return sb, err
	}
	// Many at once, by different weights.
	regions := []string{"us", "ap", "us", "ap"}
	led := make([]string, len(regions))
	var wg sync.WaitGroup
	for i, region := range regions {
		wg.Go(func() {
			to, _, err := store.SendElsewhere(t.Context(), "acme", "k", request, region)
			if err != nil {
				t.Error(err)
			}
			led[i] = to
		})
	}
	wg.Wait()
	for _, to := range led {
		if to == "" || to != led[0] {
			t.Errorf("one key leads to %v", led)
		}
	}
	elsewhere := new(record.ElsewhereError)
	if _, err := claim("k", request); !errors.As(err, &elsewhere) || elsewhere.Region != led[0] || fault.CodeOf(err) != fault.FailedPrecondition {
		t.Errorf("made here: %v", err)
	}
	for _, try := range []func() error{
		func() error { _, err := claim("k", other); return err },
		func() error {
			_, _, err := store.SendElsewhere(t.Context(), "acme", "k", other, "us")
			return err
		},
	} {
		if err := try(); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("another request with the same key: %v", err)
		}
	}
	// One that was made here stays here.
	if _, err := claim("mine", request); err != nil {
		t.Fatal(err)
	}
	if to, revision, err := store.SendElsewhere(t.Context(), "acme", "mine", request, "us"); to != "" || revision != 0 || err != nil {
		t.Errorf("sent to %q (%d), %v", to, revision, err)
	}
	// What did not arrive can be made elsewhere; what was taken back twice, or by who did
	// not send it, stays.
	_, revision, err := store.SendElsewhere(t.Context(), "acme", "back", request, "us")
	if err != nil {
		t.Fatal(err)
	}
	if err := store.TakeBack(t.Context(), "acme", "back", revision+1); err == nil {
		t.Error("taken back by another revision")
	}
	if err := store.TakeBack(t.Context(), "acme", "back", revision); err != nil {
		t.Fatal(err)
	}
	if _, err := claim("back", request); err != nil {
		t.Errorf("after it was taken back: %v", err)
	}
}
