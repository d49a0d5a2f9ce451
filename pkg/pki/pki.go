// Package pki keeps the keys of a region in one folder: the authority that
// signs the certificates with which services prove themselves to each other,
// the authority that signs the relay's public certificate (where no real one is
// configured), and the key that signs data tokens.
//
// Files are made once, on first use, and never overwritten. Private keys are
// readable by the owner only. Several processes may use one folder at once.
//
//	internal-ca.pem  internal-ca-key.pem   mutual TLS between services
//	public-ca.pem    public-ca-key.pem     the relay's own authority
//	token.pem        token-key.pem         Ed25519 for data tokens
//
// On a fleet, give each machine what it needs: agents internal-ca*.pem and
// token.pem, relays also public-ca*.pem, the api also token-key.pem.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
)

// Service is the name in every certificate between services.
const Service = "sirocco.internal"

// Folder is a folder of keys.
type Folder struct{ dir string }

// Open makes the folder if it is not there.
func Open(dir string) (*Folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open key folder: %w", err)
	}
	return &Folder{dir: dir}, nil
}

// PublicCAPath is the file that clients of the relay must trust.
func (f *Folder) PublicCAPath() string { return filepath.Join(f.dir, "public-ca.pem") }

// ServerTLS is the configuration of a listener for other services. It asks
// for, and checks, the caller's certificate.
func (f *Folder) ServerTLS() (*tls.Config, error) { return f.mutual() }

// ClientTLS is the configuration with which a service calls another.
func (f *Folder) ClientTLS() (*tls.Config, error) { return f.mutual() }

func (f *Folder) mutual() (*tls.Config, error) {
	ca, err := f.authority("internal-ca", "Sirocco internal CA")
	if err != nil {
		return nil, err
	}
	leaf, err := ca.issue([]string{Service}, nil)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return &tls.Config{
		Certificates: []tls.Certificate{leaf}, RootCAs: pool, ClientCAs: pool, ServerName: Service,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}, nil
}

// PublicTLS returns a certificate for the names, signed by the public authority.
func (f *Folder) PublicTLS(names []string, ips []net.IP) (tls.Certificate, error) {
	ca, err := f.authority("public-ca", "Sirocco public CA")
	if err != nil {
		return tls.Certificate{}, err
	}
	return ca.issue(names, ips)
}

// TokenKey returns the private key that signs data tokens.
func (f *Folder) TokenKey() (ed25519.PrivateKey, error) {
	if err := f.ensure("token-key.pem", f.makeTokenKey); err != nil {
		return nil, err
	}
	key, err := f.readKey("token-key.pem")
	if err != nil {
		return nil, err
	}
	ed, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read %s: want an Ed25519 key, not %T", filepath.Join(f.dir, "token-key.pem"), key)
	}
	return ed, nil
}

// TokenPublic returns the public key that checks data tokens. It needs the
// private one only where token.pem is missing.
func (f *Folder) TokenPublic() (ed25519.PublicKey, error) {
	if err := f.ensure("token.pem", f.makeTokenKey); err != nil {
		return nil, err
	}
	block, err := f.readPEM("token.pem")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKIXPublicKey(block)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(f.dir, "token.pem"), err)
	}
	ed, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("read %s: want an Ed25519 key, not %T", filepath.Join(f.dir, "token.pem"), key)
	}
	return ed, nil
}

func (f *Folder) makeTokenKey() error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	raw, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	if err := f.writeKey("token-key.pem", private); err != nil {
		return err
	}
	return f.writePEM("token.pem", "PUBLIC KEY", raw, 0o644)
}

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (f *Folder) authority(name, common string) (*authority, error) {
	certFile, keyFile := name+".pem", name+"-key.pem"
	err := f.ensure(certFile, func() error {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		template := &x509.Certificate{
			SerialNumber: serial(), Subject: pkix.Name{CommonName: common},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(caLife),
			IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return err
		}
		if err := f.writeKey(keyFile, key); err != nil {
			return err
		}
		return f.writePEM(certFile, "CERTIFICATE", der, 0o644)
	})
	if err != nil {
		return nil, err
	}
	der, err := f.readPEM(certFile)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(f.dir, certFile), err)
	}
	key, err := f.readKey(keyFile)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key}, nil
}

func (a *authority) issue(names []string, ips []net.IP) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, IPAddresses: ips,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}, nil
}

// ensure calls make_ once, among all processes, if file is missing.
func (f *Folder) ensure(file string, makeFile func() error) error {
	path := filepath.Join(f.dir, file)
	if _, err := os.Stat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lock := flock.New(filepath.Join(f.dir, ".lock"))
	if err := lock.Lock(); err != nil {
		return fmt.Errorf("lock key folder: %w", err)
	}
	defer func() { _ = lock.Unlock() }()
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := makeFile(); err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	return nil
}

func (f *Folder) writeKey(file string, key crypto.PrivateKey) error {
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return f.writePEM(file, "PRIVATE KEY", raw, 0o600)
}

// writePEM writes through a temporary file, so that no reader ever sees half.
func (f *Folder) writePEM(file, kind string, raw []byte, mode fs.FileMode) error {
	temp := filepath.Join(f.dir, "."+file+".new")
	if err := os.WriteFile(temp, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), mode); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(f.dir, file))
}

func (f *Folder) readPEM(file string) ([]byte, error) {
	path := filepath.Join(f.dir, file)
	raw, err := os.ReadFile(path) //nolint:gosec // the operator names the folder
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("read key: %s is not a PEM file", path)
	}
	return block.Bytes, nil
}

func (f *Folder) readKey(file string) (crypto.Signer, error) {
	raw, err := f.readPEM(file)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(f.dir, file), err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read %s: the key can't sign", filepath.Join(f.dir, file))
	}
	return signer, nil
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic("pki: no randomness") // crypto/rand never fails on a working machine
	}
	return n
}
