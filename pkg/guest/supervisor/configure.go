package supervisor

import (
	"cmp"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sirocco-run/sirocco/pkg/guest"
)

// configure takes the setup of the sandbox. It may be changed until main has
// been started; after that only what changes when the sandbox moves to another node:
// its address and name servers.
func (s *Supervisor) configure(c guest.Setup) error {
	if err := s.checkSetup(&c); err != nil {
		return err
	}
	s.mu.Lock()
	same := s.ready && equalSetup(&s.setup, &c)
	moved := c
	moved.Address, moved.DNS = s.setup.Address, s.setup.DNS
	fixed := s.main && !equalSetup(&s.setup, &moved)
	s.mu.Unlock()
	if same {
		return nil
	}
	if fixed {
		return guest.Fail(guest.CodeConfigured, "the sandbox's command has been started with another setup")
	}
	owner, err := s.resolve(c.User)
	if err != nil {
		return err
	}
	if err := s.writeEtc(&c); err != nil {
		return err
	}
	s.limit.Store(c.OutputBytes)
	s.mu.Lock()
	s.setup, s.owner, s.ready = c, owner, true
	s.mu.Unlock()
	return nil
}

func (s *Supervisor) checkSetup(c *guest.Setup) error {
	if len(c.Hostname) > 64 {
		return guest.Fail(guest.CodeInvalid, "hostname is too long")
	}
	for i := range len(c.Hostname) {
		b := c.Hostname[i]
		if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-' || b == '.' || b == '_') {
			return guest.Fail(guest.CodeInvalid, "hostname has a character that is not allowed")
		}
	}
	for _, a := range append([]string{c.Address}, c.DNS...) {
		if _, err := netip.ParseAddr(a); a != "" && err != nil {
			return guest.Fail(guest.CodeInvalid, "not an IP address: ", a)
		}
	}
	if c.Workdir != "" && c.Workdir[0] != '/' {
		return guest.Fail(guest.CodeInvalid, "workdir is not absolute: ", c.Workdir)
	}
	for _, kv := range c.Env {
		if strings.IndexByte(kv, '=') < 1 || strings.IndexByte(kv, 0) >= 0 {
			return guest.Fail(guest.CodeInvalid, "environment entry is not NAME=value")
		}
	}
	return nil
}

func equalSetup(a, b *guest.Setup) bool {
	return a.Hostname == b.Hostname && slices.Equal(a.DNS, b.DNS) && slices.Equal(a.Env, b.Env) &&
		a.Workdir == b.Workdir && a.User == b.User && a.OutputBytes == b.OutputBytes && a.Address == b.Address
}

// writeEtc writes what programs read about the sandbox's name and network. Without a
// name it keeps the one it was made with, and the files are there for the next setup
// to change, which is quicker than to make them.
func (s *Supervisor) writeEtc(c *guest.Setup) error {
	name := c.Hostname
	if name == "" {
		name, _ = os.Hostname()
	} else if s.cfg.Init {
		// Outside our gVisor, where process 1 may, it keeps its name without
		// CAP_SYS_ADMIN.
		_ = unix.Sethostname([]byte(name))
	}
	address := cmp.Or(c.Address, "127.0.0.1")
	files := []struct{ name, text string }{
		{"hostname", name + "\n"},
		{"hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n" + address + "\t" + name + "\n"},
	}
	if len(c.DNS) > 0 {
		var b strings.Builder
		for _, a := range c.DNS {
			b.WriteString("nameserver " + a + "\n")
		}
		files = append(files, struct{ name, text string }{"resolv.conf", b.String()})
	}
	s.etcMu.Lock()
	defer s.etcMu.Unlock()
	for _, f := range files {
		before, known := s.etc[f.name]
		if known && before == f.text {
			continue
		}
		write := s.replaceEtc
		if known {
			write = s.rewriteEtc
		}
		if err := write(f.name, f.text); err != nil {
			return err
		}
		s.etc[f.name] = f.text
	}
	return nil
}

// rewriteEtc changes a file of /etc that replaceEtc has made.
func (s *Supervisor) rewriteEtc(name, text string) error {
	f, err := os.OpenFile(s.cfg.Etc+"/"+name, os.O_WRONLY|os.O_TRUNC|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return s.replaceEtc(name, text)
	}
	_, err = f.WriteString(text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fileError(err)
	}
	return nil
}

// replaceEtc replaces a file of /etc, or a symlink there, by a file.
func (s *Supervisor) replaceEtc(name, text string) error {
	if err := os.MkdirAll(s.cfg.Etc, 0o755); err != nil {
		return fileError(err)
	}
	temp := s.cfg.Etc + "/" + tempPrefix + name
	if err := os.WriteFile(temp, []byte(text), 0o644); err != nil {
		_ = os.Remove(temp)
		return fileError(err)
	}
	if err := os.Rename(temp, s.cfg.Etc+"/"+name); err != nil {
		_ = os.Remove(temp)
		return fileError(err)
	}
	return nil
}
