package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestProbe(t *testing.T) {
	ready := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(ready)
		_, _ = w.Write([]byte("the bus is away"))
	}))
	defer server.Close()
	if err := run(t.Context(), []string{"probe", server.URL}); err != nil {
		t.Error(err)
	}
	ready = http.StatusServiceUnavailable
	if err := run(t.Context(), []string{"probe", server.URL}); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "the bus is away") {
		t.Errorf("not ready: %v", err)
	}
	server.Close()
	if err := run(t.Context(), []string{"probe", server.URL}); err == nil {
		t.Error("nobody listens, and it was taken for ready")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, []string{"probe", "http://192.0.2.1/"}); !errors.Is(err, context.Canceled) {
		t.Errorf("told to end: %v", err)
	}
}

func TestHold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, []string{"hold"}) }()
	select {
	case err := <-ended:
		t.Fatalf("it did not hold: %v", err)
	default:
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestArguments(t *testing.T) {
	for _, args := range [][]string{nil, {"probe"}, {"hold", "on"}, {"probe", "a", "b"}, {"sh"}} {
		if err := run(t.Context(), args); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}
