// Package busauth makes the API keys of tenants work as NATS passwords, and
// keeps tenants apart on the bus.
//
// Two accounts. SIROCCO is the services': it holds JetStream, the records and
// the commands. TENANTS is the tenants': it holds nothing. A client that logs
// in (user: the tenant; password or token: an API key) is put into TENANTS by
// the Callout, with permissions for its own subjects only. The Gateway, part of
// the api, takes what tenants publish there and carries it over.
//
// Why not one account: the reply subject of a message and the deliver subject
// of a consumer are not checked against permissions by the server. In one
// account a tenant could have JetStream answer into another tenant's commands,
// or over a record. The Gateway carries nothing whose answer would not go to
// the tenant's own inbox, and no header that has a meaning to JetStream.
//
// Events cross by an import, read-only.
package busauth

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
)

// Accounts and users of the server's configuration.
const (
	AccountServices = "SIROCCO"
	AccountTenants  = "TENANTS"
	// UserService is whom every service logs in as.
	UserService = "sirocco"
	// UserGateway is whom the Gateway logs in as, on the tenants' side.
	UserGateway = "sirocco-gateway"
)

// secretsFile is the file in the key folder.
const secretsFile = "bus.json"

// Secrets are what the bus and the services share. They live in the key
// folder, readable by the owner only.
type Secrets struct {
	// ServicePassword is that of UserService, GatewayPassword of UserGateway.
	ServicePassword string `json:"service_password"`
	GatewayPassword string `json:"gateway_password"`
	// IssuerSeed signs what the Callout answers; XKeySeed encrypts it.
	IssuerSeed string `json:"issuer_seed"`
	XKeySeed   string `json:"xkey_seed"`
}

// Load reads the secrets from a key folder, and makes them on first use.
// Several processes may use one folder at once.
func Load(dir string) (Secrets, error) {
	path := filepath.Join(dir, secretsFile)
	s, err := read(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Secrets{}, fmt.Errorf("make key folder: %w", err)
	}
	lock := flock.New(filepath.Join(dir, ".lock"))
	if err := lock.Lock(); err != nil {
		return Secrets{}, fmt.Errorf("lock key folder: %w", err)
	}
	defer func() { _ = lock.Unlock() }()
	if s, err := read(path); !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if s, err = generate(); err != nil {
		return Secrets{}, err
	}
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return Secrets{}, fmt.Errorf("encode the secrets of the bus: %w", err)
	}
	temp := filepath.Join(dir, "."+secretsFile+".new")
	if err := os.WriteFile(temp, append(raw, '\n'), 0o600); err != nil {
		return Secrets{}, fmt.Errorf("write the secrets of the bus: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return Secrets{}, fmt.Errorf("write the secrets of the bus: %w", err)
	}
	return s, nil
}

func read(path string) (Secrets, error) {
	raw, err := os.ReadFile(path) //nolint:gosec // the operator names the folder
	if err != nil {
		return Secrets{}, fmt.Errorf("read the secrets of the bus: %w", err)
	}
	var s Secrets
	if err := json.Unmarshal(raw, &s); err != nil {
		return Secrets{}, fmt.Errorf("read %s: %w", path, err)
	}
	if s.ServicePassword == "" || s.GatewayPassword == "" || s.IssuerSeed == "" || s.XKeySeed == "" {
		return Secrets{}, fmt.Errorf("read %s: it is not whole", path)
	}
	return s, nil
}

func generate() (Secrets, error) {
	issuer, err := nkeys.CreateAccount()
	if err != nil {
		return Secrets{}, fmt.Errorf("make the issuer's key: %w", err)
	}
	issuerSeed, err := issuer.Seed()
	if err != nil {
		return Secrets{}, fmt.Errorf("make the issuer's key: %w", err)
	}
	curve, err := nkeys.CreateCurveKeys()
	if err != nil {
		return Secrets{}, fmt.Errorf("make the callout's key: %w", err)
	}
	curveSeed, err := curve.Seed()
	if err != nil {
		return Secrets{}, fmt.Errorf("make the callout's key: %w", err)
	}
	return Secrets{ServicePassword: password(), GatewayPassword: password(), IssuerSeed: string(issuerSeed), XKeySeed: string(curveSeed)}, nil
}

func password() string {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails, by its contract
	return base64.RawURLEncoding.EncodeToString(raw)
}

// ServerConfig returns the part of a nats-server configuration file that this
// package needs: accounts, users and the callout. It holds the passwords.
func (s Secrets) ServerConfig() (string, error) {
	issuer, err := publicOf(s.IssuerSeed)
	if err != nil {
		return "", err
	}
	xkey, err := publicOf(s.XKeySeed)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf(`accounts {
  %[1]s {
    jetstream: enabled
    users: [ { user: %[3]q, password: %[5]q } ]
    exports: [ { stream: "sirocco.evt.>", accounts: [ %[2]s ] } ]
  }
  %[2]s {
    users: [ { user: %[4]q, password: %[6]q } ]
    imports: [ { stream: { account: %[1]s, subject: "sirocco.evt.>" } } ]
  }
}
authorization {
  auth_callout {
    issuer: %[7]s
    xkey: %[8]s
    account: %[1]s
    auth_users: [ %[3]q, %[4]q ]
  }
}
`, AccountServices, AccountTenants, UserService, UserGateway, s.ServicePassword, s.GatewayPassword, issuer, xkey), nil
}

// ServerOptions configures an embedded server with ServerConfig. What opts
// says of listeners, storage and limits stays.
func (s Secrets) ServerOptions(opts *server.Options) error {
	text, err := s.ServerConfig()
	if err != nil {
		return err
	}
	if err := opts.ProcessConfigString(text); err != nil {
		return fmt.Errorf("configure the bus: %w", err)
	}
	return nil
}

func publicOf(seed string) (string, error) {
	pair, err := nkeys.FromSeed([]byte(seed))
	if err != nil && len(seed) > 2 && seed[:2] == "SX" {
		pair, err = nkeys.FromCurveSeed([]byte(seed))
	}
	if err != nil {
		return "", fmt.Errorf("read a key of the bus: %w", err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return "", fmt.Errorf("read a key of the bus: %w", err)
	}
	return public, nil
}
