package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor"
	"github.com/sirocco-run/sirocco/pkg/sandboxid"
)

// direct is a sandbox of this program's own, reached without a tunnel: by
// gVisor's port-forward in this process, as an agent reaches its own.
type direct struct {
	sandbox runtime.Sandbox
	spec    runtime.Spec
	runtime *gvisor.Runtime
	dir     string
	done    func()
}

// openDirect starts a command in a sandbox with the base image. It needs root.
func openDirect(ctx context.Context, p Programs, command []string) (_ *direct, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a sandbox of our own needs root")
	}
	d := &direct{done: func() {}}
	defer func() {
		if err != nil {
			err = fmt.Errorf("start a sandbox to reach without a tunnel: %w", errors.Join(err, d.close(ctx)))
		}
	}()
	if d.dir, err = os.MkdirTemp("", "sirocco-direct-"); err != nil {
		return nil, err
	}
	erofs, done, err := p.image(ctx)
	if err != nil {
		return nil, err
	}
	d.done = done
	if d.runtime, err = gvisor.New(gvisor.Config{RunscPath: p.Runsc, StateDir: filepath.Join(d.dir, "s")}); err != nil {
		return nil, err
	}
	d.spec = runtime.Spec{
		ID: sandboxid.New(), Rootfs: runtime.Rootfs{EROFS: erofs}, Args: command, Env: []string{"PATH=/bin"}, Hostname: "direct",
		// As much as a sandbox of the platform gets by default.
		Resources: runtime.Resources{MemoryBytes: memoryDefault, CPUMillis: 1000, Pids: 512},
	}
	d.sandbox, err = d.runtime.Create(ctx, d.spec)
	return d, err
}

// plain makes HTTP requests to the server in it, whatever host they name.
func (d *direct) plain(connections int) *http.Client {
	return httpClient(connections, nil, func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.sandbox.Dial(ctx, serverPort)
	})
}

// serveTLS accepts HTTPS on loopback and passes what is inside on to the server:
// what any server that speaks HTTPS does, and nothing else. It returns the address
// and a client's configuration, and ends with stop.
func (d *direct) serveTLS(ctx context.Context) (address string, client *tls.Config, stop func(), err error) {
	cert, pool, err := selfSigned()
	if err != nil {
		return "", nil, nil, fmt.Errorf("serve TLS: %w", err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}})
	if err != nil {
		return "", nil, nil, fmt.Errorf("serve TLS: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { d.splice(ctx, c) })
		}
	})
	return l.Addr().String(), &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: directName}, func() {
		cancel()
		_ = l.Close()
		all.Wait()
	}, nil
}

// splice connects a client with the server until one of them or ctx ends.
func (d *direct) splice(ctx context.Context, client net.Conn) {
	defer client.Close()
	server, err := d.sandbox.Dial(ctx, serverPort)
	if err != nil {
		return
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { _, _ = client.Close(), server.Close() })
	defer stop()
	var other sync.WaitGroup
	other.Go(func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	})
	_, _ = io.Copy(client, server)
	_ = client.Close()
	other.Wait()
}

// directName is whom the certificate is for.
const directName = "direct.localhost"

// selfSigned makes a certificate, of the kind that the relay has, and whom to
// trust for it.
func selfSigned() (tls.Certificate, *x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{directName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, pool, nil
}

// close ends it and removes everything of it.
func (d *direct) close(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	if d.sandbox != nil {
		errs = append(errs, d.sandbox.Destroy(ctx))
	}
	if d.runtime != nil {
		errs = append(errs, d.runtime.Close())
	}
	d.done()
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}
