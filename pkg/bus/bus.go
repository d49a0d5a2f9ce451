// Package bus connects to NATS and speaks Sirocco's conventions on it: bodies
// in protobuf or JSON, typed errors in answers, the trace context in headers.
package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
)

// Config says how to reach the bus.
type Config struct {
	// URL is one or more NATS URLs, separated by commas.
	URL string
	// User and Password; empty for none.
	User, Password string
	// TLS is set when the bus listens beyond loopback.
	TLS *tls.Config
	// Name is shown in the server's list of connections.
	Name string
	// InProcess connects without a socket; nil otherwise.
	InProcess nats.InProcessConnProvider
	// InboxPrefix keeps the answers of one kind of user apart from those of
	// others; default "_INBOX_sirocco", that of the services.
	InboxPrefix string
	// NoWait returns before the bus has been reached.
	NoWait bool
	Logger *slog.Logger
}

// ServiceInbox is the inbox prefix of services.
const ServiceInbox = "_INBOX_sirocco"

// TenantInbox is the inbox prefix that a tenant's NATS user may subscribe to.
func TenantInbox(tenant string) string { return "_INBOX_" + tenant }

// Connect connects and keeps the connection for ever: it is tried again until
// ctx ends, at start too. The defaults of nats.go would take minutes to notice
// a server that hangs, and give up after 60 tries, and stay with a server that
// has lost the majority of its cluster.
//
// Concurrency: what it starts ends when the connection is closed.
func Connect(ctx context.Context, cfg Config) (*nats.Conn, error) {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	inbox := cfg.InboxPrefix
	if inbox == "" {
		inbox = ServiceInbox
	}
	why := ""                                             // the bus was not reached last
	life, end := context.WithCancel(context.Background()) // the connection's, which outlives ctx
	opts := []nats.Option{
		nats.ClosedHandler(func(*nats.Conn) { end() }), // more than once if it is just being made anew
		nats.Name(cfg.Name),
		nats.PingInterval(2 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, 250*time.Millisecond),
		nats.RetryOnFailedConnect(true),
		nats.IgnoreAuthErrorAbort(),
		nats.CustomInboxPrefix(inbox),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("bus lost", "err", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			why = ""
			log.Info("bus found again", "server", nc.ConnectedUrlRedacted())
		}),
		// One try follows the other four times a second: the reason is told when it
		// changes.
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if err.Error() != why {
				why = err.Error()
				log.Warn("the bus can't be reached; it is tried again", "url", cfg.URL, "err", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			name := ""
			if sub != nil {
				name = sub.Subject
			}
			log.Error("bus error", "err", err, "subject", name)
		}),
	}
	if cfg.User != "" {
		opts = append(opts, nats.UserInfo(cfg.User, cfg.Password))
	}
	if cfg.TLS != nil {
		opts = append(opts, nats.Secure(cfg.TLS))
	}
	if cfg.InProcess != nil {
		opts = append(opts, nats.InProcessServer(cfg.InProcess))
	}
	nc, err := nats.Connect(cfg.URL, opts...)
	if err != nil {
		end()
		return nil, fmt.Errorf("connect to the bus at %s: %w", cfg.URL, err)
	}
	go stayWithMajority(life, nc, log)
	if cfg.NoWait {
		return nc, nil
	}
	// Wait for the first connection, but never give up by ourselves.
	tell := time.AfterFunc(time.Second, func() { log.Info("waiting for the bus", "url", cfg.URL) })
	defer tell.Stop()
	if err := Await(ctx, nc); err != nil {
		nc.Close()
		return nil, fmt.Errorf("connect to the bus at %s: %w", cfg.URL, errors.Join(err, nc.LastError()))
	}
	return nc, nil
}

// Await returns once the bus is there, at once if it is; the error is that of
// ctx. Who has to write until it is done waits so between two tries: what is sent
// while the bus is away is kept and sent when it is back, all of it at once and
// by everybody, though all but the last has been overtaken.
func Await(ctx context.Context, nc *nats.Conn) error {
	for !nc.IsConnected() {
		status := nc.StatusChanged(nats.CONNECTED)
		if !nc.IsConnected() {
			select {
			case <-status:
			case <-ctx.Done():
			}
		}
		nc.RemoveStatusListener(status)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}
