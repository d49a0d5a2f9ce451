package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func open(t *testing.T, dir string) *Folder {
	t.Helper()
	f, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// handshake says whether a client and a server accept each other.
func handshake(t *testing.T, client, server *tls.Config) error {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		// The first byte comes after the server has judged the certificate.
		_, _ = conn.Write([]byte{1})
	}()
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: client}
	conn, err := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Read(make([]byte, 1))
	return err
}

func TestServicesTrustEachOtherAndNobodyElse(t *testing.T) {
	ours, theirs := open(t, t.TempDir()), open(t, t.TempDir())
	server, err := ours.ServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	client, err := ours.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := theirs.ClientTLS()
	if err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, client, server); err != nil {
		t.Errorf("two services of one folder: %v", err)
	}
	if err := handshake(t, stranger, server); err == nil {
		t.Error("a stranger's certificate was accepted")
	}
	trusting := stranger.Clone()
	trusting.RootCAs = client.RootCAs
	if err := handshake(t, trusting, server); err == nil {
		t.Error("a stranger who knows our authority was accepted")
	}
	nameless := client.Clone()
	nameless.Certificates = nil
	if err := handshake(t, nameless, server); err == nil {
		t.Error("a client without a certificate was accepted")
	}
}

func TestPublicCertificate(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir)
	cert, err := f.PublicTLS([]string{"*.sandbox.test"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(f.PublicCAPath())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("the authority's file is not a certificate")
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "8000-x.sandbox.test"}); err != nil {
		t.Error(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "other.test"}); err == nil {
		t.Error("it is good for any name")
	}
}

func TestFilesAreMadeOnceAndPrivate(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	keys := make([]string, 8)
	for i := range keys {
		wg.Go(func() {
			f, err := Open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			private, err := f.TokenKey()
			if err != nil {
				t.Error(err)
				return
			}
			public, err := f.TokenPublic()
			if err != nil || !public.Equal(private.Public()) {
				t.Errorf("the halves do not match: %v", err)
			}
			keys[i] = string(private)
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatal("two keys were made")
		}
	}
	info, err := os.Stat(filepath.Join(dir, "token-key.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// An agent has the public half only.
	agent := t.TempDir()
	raw, err := os.ReadFile(filepath.Join(dir, "token.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(agent, "token.pem"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, agent).TokenPublic(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(agent, "token-key.pem")); err == nil {
		t.Error("a second private key was made beside a public one")
	}
}
