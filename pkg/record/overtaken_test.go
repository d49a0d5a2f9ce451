package record_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"github.com/sirocco-run/sirocco/pkg/record"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// What others have written is found, once and until it is known, and nothing else.
func TestOvertaken(t *testing.T) {
	store, _ := open(t)
	known := map[string]record.Known{}
	learn := func(sb *siroccov1.Sandbox) {
		known[sb.GetId()] = record.Known{Tenant: "acme", ID: sb.GetId(), Revision: sb.GetRevision()}
	}
	var ids []string
	for i := range 600 { // more than one request
		sb, err := store.Create(t.Context(), lifecycle.Accept(sandboxid.New(), "acme", fmt.Sprint(i), &siroccov1.CreateSandboxRequest{}, time.Now()))
		if err != nil {
			t.Fatal(err)
		}
		learn(sb)
		ids = append(ids, sb.GetId())
	}
	ask := func(since uint64) (found []string, upTo uint64) {
		t.Helper()
		var all []record.Known
		for _, id := range ids {
			all = append(all, known[id])
		}
		overtaken, upTo, err := store.Overtaken(t.Context(), all, since)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range overtaken {
			found = append(found, k.ID)
		}
		return found, upTo
	}
	expect := func(since uint64, want ...string) uint64 {
		t.Helper()
		found, upTo := ask(since)
		slices.Sort(found)
		slices.Sort(want)
		if !slices.Equal(found, want) {
			t.Fatalf("found %v, want %v", found, want)
		}
		if upTo < since {
			t.Fatalf("it went back from %d to %d", since, upTo)
		}
		return upTo
	}
	since := expect(0)
	if since == 0 {
		t.Fatal("it does not say how far it has looked")
	}
	since = expect(since)
	changed := []string{ids[3], ids[550]}
	var written []*siroccov1.Sandbox
	for _, id := range changed {
		sb, err := store.Update(t.Context(), "acme", id, nil, lifecycle.SetTags{Tags: map[string]string{"a": "b"}})
		if err != nil {
			t.Fatal(err)
		}
		written = append(written, sb)
	}
	expect(since, changed...)
	expect(since, changed...) // they have not been read yet
	expect(0, changed...)
	for _, sb := range written {
		learn(sb)
	}
	since = expect(since)
	if err := store.Delete(t.Context(), "acme", ids[7]); err != nil {
		t.Fatal(err)
	}
	expect(since, ids[7])
	expect(0, ids[7])
}
