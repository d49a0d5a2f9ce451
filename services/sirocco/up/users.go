package up

import (
	"fmt"
	"path/filepath"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/crypto/bcrypt"
)

// urlFile says where the bus is, for `sirocco down`.
func urlFile(data string) string { return filepath.Join(data, "bus-url") }

// BusURL returns where the bus of a platform is, or was last; ok is false where
// none has been, or this user may not know.
func BusURL(data string) (url string, ok bool) {
	url, err := readSecret(urlFile(data))
	return url, err == nil && url != ""
}

// users sets who may connect to the bus.
func users(password string) (func(*server.Options), error) {
	// The least cost: the password is random, and each connection pays.
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		return nil, fmt.Errorf("hash the bus's password: %w", err)
	}
	return func(o *server.Options) {
		o.Users = []*server.User{{Username: BusUser, Password: string(hash)}}
	}, nil
}
