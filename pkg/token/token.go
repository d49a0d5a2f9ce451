// Package token makes and checks the short-lived tokens with which a client
// opens the data services (exec, files, logs) of one sandbox. The api signs
// with a private Ed25519 key; relays and agents hold the public one and need no
// bus to check.
package token

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/sirocco-run/sirocco/pkg/fault"
)

// Lifetimes of a token.
const (
	DefaultTTL = time.Hour
	MaxTTL     = 24 * time.Hour
)

const audience = "sirocco-data"

// Claims say what a token opens.
type Claims struct {
	Tenant  string
	Sandbox string
	Expires time.Time
}

type payload struct {
	Tenant string `json:"tnt"`
	jwt.RegisteredClaims
}

// Sign makes a token (a JWT, EdDSA).
func Sign(key ed25519.PrivateKey, c Claims) (string, error) {
	t, err := jwt.NewWithClaims(jwt.SigningMethodEdDSA, payload{
		Tenant: c.Tenant,
		RegisteredClaims: jwt.RegisteredClaims{
			Subject: c.Sandbox, Audience: jwt.ClaimStrings{audience}, ExpiresAt: jwt.NewNumericDate(c.Expires),
		},
	}).SignedString(key)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return t, nil
}

// Check returns what a token opens. The error is an Unauthenticated fault.
func Check(key ed25519.PublicKey, text string, now time.Time) (Claims, error) {
	var p payload
	_, err := jwt.ParseWithClaims(text, &p, func(*jwt.Token) (any, error) { return key, nil },
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithAudience(audience),
		jwt.WithExpirationRequired(), jwt.WithTimeFunc(func() time.Time { return now }), jwt.WithLeeway(5*time.Second))
	if err != nil {
		message := "the token is not valid"
		if errors.Is(err, jwt.ErrTokenExpired) {
			message = "the token has expired: ask for a new one"
		}
		return Claims{}, &fault.Fault{Code: fault.Unauthenticated, Message: message, Cause: err}
	}
	return Claims{Tenant: p.Tenant, Sandbox: p.Subject, Expires: p.ExpiresAt.Time}, nil
}
