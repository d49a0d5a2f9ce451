package busauth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/sirocco-run/sirocco/pkg/apikey"
)

const (
	// calloutSubject is where the server asks, in the services' account.
	calloutSubject = "$SYS.REQ.USER.AUTH"
	headerXKey     = "Nats-Server-Xkey"
	// loginLife is when a connection has to log in again (clients do so by
	// themselves): the longest that a revoked key stays connected.
	loginLife = time.Hour
	// verifyTime is below the two seconds that the server waits.
	verifyTime = 1500 * time.Millisecond
	maxLogins  = 256
	maxSubs    = 1000
)

// Verifier tells what an API key opens.
type Verifier interface {
	Verify(ctx context.Context, secret string) (apikey.Key, error)
}

// Callout answers the server's question who a connection is.
type Callout struct {
	nc        *nats.Conn
	keys      Verifier
	anonymous string
	issuer    nkeys.KeyPair
	xkey      nkeys.KeyPair
	log       *slog.Logger
}

// NewCallout builds a callout on a service's connection. anonymous is the
// tenant that a connection without credentials is; empty: it is refused.
func NewCallout(nc *nats.Conn, keys Verifier, secrets Secrets, anonymous string, log *slog.Logger) (*Callout, error) {
	issuer, err := nkeys.FromSeed([]byte(secrets.IssuerSeed))
	if err != nil {
		return nil, fmt.Errorf("read the issuer's key: %w", err)
	}
	xkey, err := nkeys.FromCurveSeed([]byte(secrets.XKeySeed))
	if err != nil {
		return nil, fmt.Errorf("read the callout's key: %w", err)
	}
	if anonymous != "" {
		if err := apikey.CheckTenant(anonymous); err != nil {
			return nil, fmt.Errorf("anonymous tenant: %w", err)
		}
	}
	return &Callout{nc: nc, keys: keys, anonymous: anonymous, issuer: issuer, xkey: xkey, log: log}, nil
}

// Run answers until ctx ends, and then returns nil. serving is closed once the
// server can ask.
func (c *Callout) Run(ctx context.Context, serving chan<- struct{}) error {
	var running sync.WaitGroup
	slots := make(chan struct{}, maxLogins)
	sub, err := c.nc.QueueSubscribe(calloutSubject, "busauth", func(msg *nats.Msg) {
		select {
		case slots <- struct{}{}:
		default:
			return // the server gives up by itself, and the client tries again
		}
		running.Go(func() {
			defer func() { <-slots }()
			c.handle(ctx, msg)
		})
	})
	if err != nil {
		return fmt.Errorf("serve logins: %w", err)
	}
	if err := c.nc.FlushTimeout(10 * time.Second); err != nil {
		return fmt.Errorf("serve logins: %w", err)
	}
	close(serving)
	<-ctx.Done()
	_ = sub.Unsubscribe()
	running.Wait()
	return nil
}

func (c *Callout) handle(ctx context.Context, msg *nats.Msg) {
	ctx, cancel := context.WithTimeout(ctx, verifyTime)
	defer cancel()
	serverKey := msg.Header.Get(headerXKey)
	body := msg.Data
	if serverKey == "" {
		// The server has the xkey in its configuration; whoever asks without
		// is not the server.
		c.log.Warn("login asked for without encryption: dropped")
		return
	}
	body, err := c.xkey.Open(body, serverKey)
	if err != nil {
		c.log.Warn("login asked for with a wrong key: dropped", "err", err)
		return
	}
	req, err := jwt.DecodeAuthorizationRequestClaims(string(body))
	if err != nil {
		c.log.Warn("login that can't be read: dropped", "err", err)
		return
	}
	token, err := c.response(ctx, req)
	if err != nil {
		c.log.Error("login not answered", "err", err)
		return
	}
	sealed, err := c.xkey.Seal([]byte(token), serverKey)
	if err != nil {
		c.log.Error("login not answered", "err", err)
		return
	}
	if err := msg.Respond(sealed); err != nil {
		c.log.Warn("login not answered", "err", err)
	}
}

// response decides, and signs the decision.
func (c *Callout) response(ctx context.Context, req *jwt.AuthorizationRequestClaims) (string, error) {
	resp := jwt.NewAuthorizationResponseClaims(req.UserNkey)
	resp.Audience = req.Server.ID
	who, err := c.who(ctx, req.ConnectOptions)
	if err != nil {
		c.log.Info("login refused", "user", req.ConnectOptions.Username, "from", req.ClientInformation.Host, "err", err)
		resp.Error = "not authorized"
		return resp.Encode(c.issuer)
	}
	user := jwt.NewUserClaims(req.UserNkey)
	user.Name, user.Audience = who.name, AccountTenants
	user.Expires = time.Now().Add(loginLife).Unix()
	user.Permissions = who.permissions()
	user.Limits.Subs = maxSubs
	signed, err := user.Encode(c.issuer)
	if err != nil {
		return "", fmt.Errorf("sign a login: %w", err)
	}
	resp.Jwt = signed
	return resp.Encode(c.issuer)
}

var errCredentials = errors.New("no usable credentials")

// who reads the credentials: user and password, or a token, or none.
func (c *Callout) who(ctx context.Context, o jwt.ConnectOptions) (tenant, error) {
	secret := o.Password
	if secret == "" {
		secret = o.Token
	}
	if secret == "" {
		if o.Username != "" || o.JWT != "" || o.Nkey != "" || c.anonymous == "" {
			return tenant{}, errCredentials
		}
		return tenant{name: c.anonymous, anonymous: true}, nil
	}
	key, err := c.keys.Verify(ctx, secret)
	if err != nil {
		return tenant{}, err
	}
	if o.Username != "" && o.Username != key.Tenant {
		return tenant{}, errCredentials
	}
	return tenant{name: key.Tenant, operator: key.Role == apikey.RoleOperator}, nil
}
