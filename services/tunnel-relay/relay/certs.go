package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/sirocco-run/sirocco/pkg/pki"
)

// renewBefore is how long before its end an own certificate is made anew.
const renewBefore = 30 * 24 * time.Hour

// certs is the public certificate, replaced while the relay runs.
type certs struct {
	current atomic.Pointer[tls.Certificate]
	log     *slog.Logger
	// load returns a certificate, and a mark that changes when it must be
	// loaded again.
	load func() (*tls.Certificate, error)
	mark func() (string, error)
	last string
	// every is how often the mark is looked at.
	every time.Duration
}

// ownCerts are signed by the region's own authority.
func ownCerts(keys *pki.Folder, names []string, log *slog.Logger) *certs {
	c := &certs{log: log, every: time.Hour}
	c.load = func() (*tls.Certificate, error) {
		cert, err := keys.PublicTLS(names, nil)
		if err != nil {
			return nil, fmt.Errorf("make the public certificate: %w", err)
		}
		return withLeaf(&cert)
	}
	c.mark = func() (string, error) {
		cert := c.current.Load()
		if cert == nil || time.Until(cert.Leaf.NotAfter) < renewBefore {
			return time.Now().String(), nil // differs from every mark before
		}
		return c.last, nil
	}
	return c
}

// fileCerts are read from files, again when they change.
func fileCerts(certFile, keyFile string, log *slog.Logger) *certs {
	return &certs{
		log: log, every: 5 * time.Second,
		load: func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(certFile, keyFile)
			if err != nil {
				return nil, fmt.Errorf("read --cert and --key: %w", err)
			}
			return withLeaf(&cert)
		},
		mark: func() (string, error) {
			a, err1 := os.Stat(certFile)
			b, err2 := os.Stat(keyFile)
			if err := errors.Join(err1, err2); err != nil {
				return "", err
			}
			return fmt.Sprint(a.ModTime().UnixNano(), a.Size(), b.ModTime().UnixNano(), b.Size()), nil
		},
	}
}

func withLeaf(cert *tls.Certificate) (*tls.Certificate, error) {
	if cert.Leaf != nil {
		return cert, nil
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("parse the public certificate: %w", err)
	}
	cert.Leaf = leaf
	return cert, nil
}

// refresh loads the certificate if it has changed. A new one that can't be
// loaded leaves the old one in use.
func (c *certs) refresh() error {
	mark, err := c.mark()
	if err != nil || mark == c.last && c.current.Load() != nil {
		return err
	}
	cert, err := c.load()
	if err != nil {
		return err
	}
	c.last = mark
	c.current.Store(cert)
	return nil
}

func (c *certs) run(ctx context.Context) {
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := c.refresh(); err != nil {
				c.log.Warn("the public certificate could not be renewed; the old one stays", "err", err)
			}
		}
	}
}

// get is tls.Config.GetCertificate.
func (c *certs) get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil }
