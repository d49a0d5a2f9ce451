package relay

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/caddyserver/certmagic"
	"github.com/sirocco-run/sirocco/pkg/lifecycle"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// newACME returns what gets certificates from a public authority, each at the
// first handshake for its name (on demand, TLS-ALPN challenge on the listener
// itself). Only names that mayIssue allows are ever asked for, so that nobody
// can spend the authority's limits with invented ones. stop ends its renewal.
func (r *Relay) newACME() (get func(*tls.ClientHelloInfo) (*tls.Certificate, error), stop func()) {
	dir := r.cfg.ACMEDir
	if dir == "" {
		dir = filepath.Join(filepath.Dir(r.env.Keys.PublicCAPath()), "acme")
	}
	logger := zap.New(zapSlog{log: r.log, LevelEnabler: zapcore.InfoLevel})
	var magic *certmagic.Config
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return magic, nil },
		Logger:           logger,
	})
	magic = certmagic.New(cache, certmagic.Config{
		Storage:  &certmagic.FileStorage{Path: dir},
		OnDemand: &certmagic.OnDemandConfig{DecisionFunc: r.mayIssue},
		Logger:   logger,
	})
	ca := r.cfg.ACMECA
	if ca == "" {
		ca = certmagic.LetsEncryptProductionCA
	}
	magic.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(magic, certmagic.ACMEIssuer{
		CA: ca, Email: r.cfg.ACMEEmail, Agreed: true, DisableHTTPChallenge: true,
		TrustedRoots: r.acmeRoots, Logger: logger,
	})}
	return magic.GetCertificate, cache.Stop
}

// mayIssue says whether a certificate may be asked for: for the data services,
// and for tunnels of sandboxes that live.
func (r *Relay) mayIssue(_ context.Context, name string) error {
	id, ok := r.validName(name)
	if !ok {
		return fmt.Errorf("%q is no name of this relay", clip(name))
	}
	if id == "" {
		return nil
	}
	sb := r.router.lookup(id)
	if sb == nil || lifecycle.Ended(sb.GetState()) {
		return fmt.Errorf("%q leads to no living sandbox", clip(name))
	}
	return nil
}

// zapSlog passes certmagic's log on.
type zapSlog struct {
	zapcore.LevelEnabler
	log *slog.Logger
}

// With returns the same with fields.
func (z zapSlog) With(fields []zapcore.Field) zapcore.Core {
	return zapSlog{LevelEnabler: z.LevelEnabler, log: z.log.With(zapAttrs(fields)...)}
}

// Check asks for the entry if it is to be logged.
func (z zapSlog) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if z.Enabled(e.Level) {
		return ce.AddCore(e, z)
	}
	return ce
}

// Write logs an entry.
func (z zapSlog) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelInfo
	switch {
	case e.Level >= zapcore.ErrorLevel:
		level = slog.LevelError
	case e.Level == zapcore.WarnLevel:
		level = slog.LevelWarn
	}
	z.log.Log(context.Background(), level, "acme: "+e.Message, zapAttrs(fields)...)
	return nil
}

// Sync does nothing: slog does not buffer.
func (zapSlog) Sync() error { return nil }

func zapAttrs(fields []zapcore.Field) []any {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	attrs := make([]any, 0, 2*len(m.Fields))
	for k, v := range m.Fields {
		attrs = append(attrs, k, v)
	}
	return attrs
}
