package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
)

// Config is the command line's own file: where the api is and how to get in.
type Config struct {
	// API is the base URL.
	API string `json:"api,omitempty"`
	// Key is the API key.
	Key string `json:"key,omitempty"`
	// CA is a PEM file of the authority that signs the relay's certificate.
	CA string `json:"ca,omitempty"`
}

// ConfigPath is where the file is: $SIROCCO_CONFIG, or below
// $XDG_CONFIG_HOME, or below ~/.config.
func ConfigPath(home string, getenv func(string) string) string {
	if p := getenv("SIROCCO_CONFIG"); p != "" {
		return p
	}
	base := getenv("XDG_CONFIG_HOME")
	if base == "" {
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "sirocco", "config.json")
}

// LoadConfig reads the file; one that is missing is empty.
func LoadConfig(path string) (Config, error) {
	var c Config
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read the CLI's config: %w", err)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, failed("mend or remove the file.", "%s is not JSON: %w", path, err)
	}
	return c, nil
}

// Save writes the file for its owner only, whole or not at all.
func (c Config) Save(path string) error {
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write the CLI's config: %w", err)
	}
	temp := path + ".new"
	// What is there may be readable by others.
	_ = os.Remove(temp)
	if err := os.WriteFile(temp, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the CLI's config: %w", err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("write the CLI's config: %w", err)
	}
	return nil
}

// saveForSudo writes the file also for the user who has become root by sudo,
// with a copy of the CA, because the original's folder is root's alone. It does
// nothing where there is no such user, or the file is named by the environment.
func (c Config) saveForSudo(getenv func(string) string) error {
	name := getenv("SUDO_USER")
	if name == "" || name == "root" || getenv("SIROCCO_CONFIG") != "" {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return err
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	// Below its own home only: a variable of root's environment names others.
	path := ConfigPath(u.HomeDir, func(string) string { return "" })
	ca, err := os.ReadFile(c.CA)
	if err != nil {
		return err
	}
	c.CA = filepath.Join(filepath.Dir(path), "ca.pem")
	if err := c.Save(path); err != nil {
		return err
	}
	if err := os.WriteFile(c.CA, ca, 0o644); err != nil { //nolint:gosec // a certificate is public
		return err
	}
	for _, file := range []string{filepath.Dir(filepath.Dir(path)), filepath.Dir(path), path, c.CA} {
		if err := os.Lchown(file, uid, gid); err != nil {
			return err
		}
	}
	return nil
}
