package up

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/busauth"
)

// Access is how a service gets into the bus.
type Access struct {
	URL, User, Password string
}

// BusAccess returns how to get into the bus of the platform of a folder. The
// error says that none has ever run there, or that this user may not know.
func BusAccess(data string) (Access, error) {
	url, err := readSecret(urlFile(data))
	if err != nil {
		return Access{}, fmt.Errorf("find the bus: %w", err)
	}
	if url == "" {
		return Access{}, fmt.Errorf("no `sirocco up` has run with %s", data)
	}
	keys := KeysDir(data)
	if _, err := os.Stat(keys); errors.Is(err, os.ErrNotExist) {
		keys = KeysDir(filepath.Dir(data)) // one of several regions
	}
	secrets, err := busauth.Load(keys)
	if err != nil {
		return Access{}, fmt.Errorf("find the bus's password: %w", err)
	}
	return Access{URL: url, User: busauth.UserService, Password: secrets.ServicePassword}, nil
}

// Connect connects as a service, and waits for the bus until ctx ends. name is shown in
// the server's list of connections.
func (a Access) Connect(ctx context.Context, name string, log *slog.Logger) (*nats.Conn, error) {
	return bus.Connect(ctx, bus.Config{URL: a.URL, User: a.User, Password: a.Password, Name: name, Logger: log})
}

// Homes returns the folders of the platforms that ran with a folder: itself, or those
// of its regions.
func Homes(data string) []string {
	if _, err := os.Stat(urlFile(data)); err == nil {
		return []string{data}
	}
	urls, err := filepath.Glob(filepath.Join(data, "*", filepath.Base(urlFile(""))))
	if err != nil || len(urls) == 0 {
		return []string{data} // whose absence is told to who uses it
	}
	homes := make([]string, len(urls))
	for i, u := range urls {
		homes[i] = filepath.Dir(u)
	}
	return homes
}

func lockFile(data string) string { return filepath.Join(data, "up.lock") }
func pidFile(data string) string  { return filepath.Join(data, "up.pid") }
func keyFile(data string) string  { return filepath.Join(data, "api-key") }

// urlFile says where the bus is.
func urlFile(data string) string { return filepath.Join(data, "bus-url") }

// WriteSecret writes a file for its owner only, whole or not at all.
func WriteSecret(path, text string) error {
	temp := path + ".new"
	_ = os.Remove(temp)
	if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// readSecret returns "" for a file that is not there.
func readSecret(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(raw)), err
}

// KeysDir is the folder of the certificates and keys of the platform of a folder.
func KeysDir(data string) string { return filepath.Join(data, "keys") }
