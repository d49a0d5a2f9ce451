package platform

import (
	"fmt"
	"path/filepath"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/busauth"
)

// DialBus connects to the bus at a URL with the rights of a service. data is the folder of
// the platform's state.
func DialBus(data, url string) (*nats.Conn, error) {
	secrets, err := busauth.Load(filepath.Join(data, "keys"))
	if err != nil {
		return nil, fmt.Errorf("read the passwords of the bus: %w", err)
	}
	return nats.Connect(url, nats.UserInfo(busauth.UserService, secrets.ServicePassword))
}
