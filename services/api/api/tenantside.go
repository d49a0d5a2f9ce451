package api

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/admission"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/busauth"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"golang.org/x/sync/errgroup"
)

// openTenantsSide lets tenants log in to the bus with their keys, takes their
// commands and answers their asks. leave ends it and waits. Without BusAuth it
// does nothing.
func (a *API) openTenantsSide(ctx context.Context) (leave func(), err error) {
	if !a.cfg.BusAuth {
		return func() {}, nil
	}
	secrets, err := busauth.Load(filepath.Dir(a.env.Keys.PublicCAPath()))
	if err != nil {
		return nil, err
	}
	callout, err := busauth.NewCallout(a.env.NC, a.keys, secrets, a.cfg.AnonymousTenant, a.log)
	if err != nil {
		return nil, err
	}
	tenants, err := busauth.Login(a.env.NC, secrets)
	if err != nil {
		return nil, err
	}
	gateway := busauth.NewGateway(tenants, a.env.NC, a.cfg.AnonymousTenant, a.admit, a.log)
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	mayLogin, mayPublish := make(chan struct{}), make(chan struct{})
	// Logins come last: who is let in finds everything in place.
	group.Go(func() error { return gateway.Run(ctx, mayPublish) })
	stopAsks, err := a.serveAsks(ctx, tenants, func(tenant, reply string) bool {
		return busauth.OwnInbox(tenant, reply, a.cfg.AnonymousTenant)
	})
	if err == nil {
		until(ctx, mayPublish)
		group.Go(func() error { return callout.Run(ctx, mayLogin) })
		until(ctx, mayLogin)
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		if stopAsks != nil {
			stopAsks()
		}
		err = errors.Join(err, group.Wait())
		tenants.Close()
		return nil, err
	}
	return func() {
		stopAsks()
		cancel()
		if err := group.Wait(); err != nil {
			a.log.Warn("tenants' side of the bus ended", "err", err)
		}
		tenants.Close()
	}, nil
}

// admit is for creates that are published: whether they come to something is
// seen by their records only. One that a scheduler will refuse counts against the
// rate, and takes no seat.
func (a *API) admit(tenant, key string, h nats.Header, body []byte) error {
	req := &siroccov1.CreateSandboxRequest{}
	spec, err := req, bus.DecodeStrict(h, body, req)
	if err == nil {
		err = admission.CheckPublishedKey(key, req.GetIdempotencyKey())
	}
	if err == nil {
		spec, err = admission.Normalize(req, *a.cfg.Limits)
	}
	if err := a.seats.take(tenant, key, useOf(spec), time.Now()); err != nil {
		return err
	}
	if err != nil {
		a.seats.giveBack(tenant, key)
	}
	return nil
}

// until returns once ch is closed or ctx ends.
func until(ctx context.Context, ch <-chan struct{}) {
	select {
	case <-ch:
	case <-ctx.Done():
	}
}
