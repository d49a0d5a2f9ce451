package apikey_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/sirocco-run/sirocco/pkg/apikey"
	"github.com/sirocco-run/sirocco/pkg/bustest"
	"github.com/sirocco-run/sirocco/pkg/fault"
)

// TestFollow: a key opens every region until it is revoked, where it was made or where
// it was copied to, and also if that happened while nobody followed.
func TestFollow(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, there := bustest.Start(t)
	_, here := bustest.Start(t)
	us, err := apikey.Open(ctx, there)
	if err != nil {
		t.Fatal(err)
	}
	eu, err := apikey.Open(ctx, here)
	if err != nil {
		t.Fatal(err)
	}
	follow := func() (stop func()) {
		fctx, end := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- eu.Follow(fctx, there, "us", slog.New(slog.DiscardHandler)) }()
		return func() {
			end()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	await := func(secret string, opens bool) {
		t.Helper()
		for {
			_, err := eu.Verify(ctx, secret)
			if err == nil == opens {
				return
			}
			if fault.CodeOf(err) != fault.Unauthenticated && err != nil || ctx.Err() != nil {
				t.Fatalf("opens %v is wanted: %v", opens, err)
			}
		}
	}
	mint := func(s *apikey.Store) (string, apikey.Key) {
		t.Helper()
		secret, key, err := s.Create(ctx, "acme", apikey.RoleTenant, "")
		if err != nil {
			t.Fatal(err)
		}
		return secret, key
	}
	before, beforeKey := mint(us)
	own, _ := mint(eu)
	stop := follow()
	await(before, true)
	during, duringKey := mint(us)
	await(during, true)
	if got, err := eu.Verify(ctx, during); err != nil || got.Origin != "us" || got.Tenant != "acme" {
		t.Errorf("the copy is %+v, %v", got, err)
	}
	// Revoked where it was made.
	if err := us.Revoke(ctx, duringKey.ID); err != nil {
		t.Fatal(err)
	}
	await(during, false)
	// Revoked while nobody follows, and revoked at the copy.
	local, localKey := mint(us)
	await(local, true)
	stop()
	if err := us.Revoke(ctx, beforeKey.ID); err != nil {
		t.Fatal(err)
	}
	if err := eu.Revoke(ctx, localKey.ID); err != nil {
		t.Fatal(err)
	}
	await(local, false)
	await(before, true)
	stop = follow()
	await(before, false)
	last, _ := mint(us)
	await(last, true)
	await(local, false)
	if _, err := us.Verify(ctx, local); err != nil {
		t.Errorf("revoked at a copy, it is gone where it was made: %v", err)
	}
	await(own, true)
	stop()
}
