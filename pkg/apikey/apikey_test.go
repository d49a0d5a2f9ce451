package apikey_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

func TestKeys(t *testing.T) {
	_, js := bustest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	store, err := apikey.Open(ctx, js)
	if err != nil {
		t.Fatal(err)
	}
	view := apikey.NewView(store)
	done := make(chan error, 1)
	viewCtx, stop := context.WithCancel(ctx)
	go func() { done <- view.Run(viewCtx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	<-view.Ready()

	secret, key, err := store.Create(ctx, "acme", apikey.RoleTenant, "ci")
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := store.Create(ctx, "other", apikey.RoleOperator, "")
	if err != nil {
		t.Fatal(err)
	}
	got, err := view.Verify(ctx, secret)
	if err != nil || got != key {
		t.Fatalf("verify: %+v, %v; want %+v", got, err, key)
	}
	if got, err := view.Verify(ctx, other); err != nil || got.Role != apikey.RoleOperator || got.Tenant != "other" {
		t.Fatalf("verify: %+v, %v", got, err)
	}

	// Nothing in the bucket gives the secret away.
	kv, err := js.KeyValue(ctx, subject.BucketKeys)
	if err != nil {
		t.Fatal(err)
	}
	names, err := kv.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		entry, err := kv.Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(name+string(entry.Value()), secret[3:]) {
			t.Fatal("the bucket holds a key in the clear")
		}
	}

	list, err := store.List(ctx, "acme")
	if err != nil || len(list) != 1 || list[0] != key {
		t.Fatalf("list: %+v, %v", list, err)
	}
	if all, err := store.List(ctx, ""); err != nil || len(all) != 2 {
		t.Fatalf("list all: %+v, %v", all, err)
	}

	if err := store.Revoke(ctx, key.ID); err != nil {
		t.Fatal(err)
	}
	for {
		_, err := view.Verify(ctx, secret)
		if fault.CodeOf(err) == fault.Unauthenticated {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("a revoked key still works: %v", err)
		}
	}
	if err := store.Revoke(ctx, key.ID); fault.CodeOf(err) != fault.NotFound {
		t.Fatalf("revoked twice: %v", err)
	}
}

func TestWhatIsNoKeyIsRefused(t *testing.T) {
	_, js := bustest.Start(t)
	store, err := apikey.Open(t.Context(), js)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"", "sk_", "sk_short", "pk_" + strings.Repeat("A", 43), "sk_" + strings.Repeat("A", 43), "sk_" + strings.Repeat("A", 4300), "sk_\xff"} {
		if _, err := store.Verify(t.Context(), secret); fault.CodeOf(err) != fault.Unauthenticated {
			t.Errorf("%.20q: %v", secret, err)
		}
	}
	for _, tenant := range []string{"", "a.b", "a*", ">", "sirocco", "Sirocco", strings.Repeat("a", 65), "ä"} {
		if _, _, err := store.Create(t.Context(), tenant, apikey.RoleTenant, ""); fault.CodeOf(err) != fault.InvalidArgument {
			t.Errorf("tenant %q: %v", tenant, err)
		}
	}
	if _, _, err := store.Create(t.Context(), "acme", "root", ""); fault.CodeOf(err) != fault.InvalidArgument {
		t.Errorf("role: %v", err)
	}
}
