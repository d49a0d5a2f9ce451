package token

import (
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/sirocco-run/sirocco/pkg/fault"
)

var now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func keys(t testing.TB) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

func TestTokens(t *testing.T) {
	public, private := keys(t)
	_, other := keys(t)
	sign := func(key ed25519.PrivateKey, c Claims) string {
		text, err := Sign(key, c)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	good := Claims{Tenant: "acme", Sandbox: "sb-x", Expires: now.Add(time.Hour)}
	got, err := Check(public, sign(private, good), now)
	if err != nil || got.Tenant != "acme" || got.Sandbox != "sb-x" || !got.Expires.Equal(good.Expires) {
		t.Fatalf("%+v, %v", got, err)
	}
	forge := func(method jwt.SigningMethod, key any, claims jwt.MapClaims) string {
		text, err := jwt.NewWithClaims(method, claims).SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	claims := jwt.MapClaims{"tnt": "acme", "sub": "sb-x", "aud": audience, "exp": now.Add(time.Hour).Unix()}
	for name, text := range map[string]string{
		"nothing":               "",
		"garbage":               "a.b.c",
		"another key":           sign(other, good),
		"expired":               sign(private, Claims{Tenant: "acme", Sandbox: "sb-x", Expires: now.Add(-time.Minute)}),
		"no algorithm":          forge(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, claims),
		"public key as secret":  forge(jwt.SigningMethodHS256, []byte(public), claims),
		"for something else":    forge(jwt.SigningMethodEdDSA, private, jwt.MapClaims{"tnt": "acme", "sub": "sb-x", "aud": "x", "exp": now.Add(time.Hour).Unix()}),
		"without an expiration": forge(jwt.SigningMethodEdDSA, private, jwt.MapClaims{"tnt": "acme", "sub": "sb-x", "aud": audience}),
	} {
		if _, err := Check(public, text, now); fault.CodeOf(err) != fault.Unauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzCheck(f *testing.F) {
	public, private := keys(f)
	text, err := Sign(private, Claims{Tenant: "acme", Sandbox: "sb-x", Expires: now.Add(time.Hour)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, s string) {
		c, err := Check(public, s, now)
		if err == nil && (c.Tenant != "acme" || c.Sandbox != "sb-x") {
			t.Fatalf("a forged token opens %+v", c)
		}
	})
}
