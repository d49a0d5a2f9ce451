package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/runtime"
)

// hostEtc are the parts of /etc that programs need and that hold no secrets.
// Of these too, only what everybody may read is taken.
var hostEtc = []string{
	"ld.so.cache", "ld.so.conf", "ld.so.conf.d", "nsswitch.conf", "host.conf", "gai.conf", "alternatives",
	"localtime", "timezone", "mime.types", "services", "protocols", "shells", "os-release", "debian_version",
	"ssl/certs", "ssl/openssl.cnf", "ca-certificates.conf", "pki/tls/certs", "pki/ca-trust/extracted", "crypto-policies",
	"profile", "bash.bashrc", "inputrc", "terminfo", "fonts", "perl", "magic", "magic.mime", "locale.alias",
	"python*", "java*",
}

const (
	maxHostFile  = 4 << 20
	maxHostFiles = 20_000
)

// host returns the image that shows this machine's programs. Its folder is made
// once for each content of the parts copied into it.
func (s *Store) host(ctx context.Context) (Image, error) {
	gen, err := s.generation()
	if err != nil {
		return Image{}, err
	}
	// Looking at /etc costs 100 ms, so it is done once in the life of a store.
	// Only one flight is here at a time.
	if s.hostGen == gen {
		if img, err := s.load(ctx, s.hostDigest); err == nil {
			return img, nil
		}
	}
	img, err := s.buildHost(ctx)
	if err == nil {
		s.hostGen, s.hostDigest = gen, img.Digest
	}
	return img, err
}

func (s *Store) buildHost(ctx context.Context) (Image, error) {
	w, err := s.newWorkdir()
	if err != nil {
		return Image{}, err
	}
	defer w.remove()
	sk := &skeleton{ctx: ctx, root: w.file("root"), sum: sha256.New()}
	fmt.Fprintln(sk.sum, "host", format)
	if err := sk.make(s.opt.Supervisor); err != nil {
		return Image{}, fmt.Errorf("prepare host image: %w", spaceError(err))
	}
	m := manifest{Digest: "sha256:" + hex.EncodeToString(sk.sum.Sum(nil)), Source: Host, Kind: KindHost, Binds: sk.binds,
		Config: Config{Env: []string{searchPath}, Cmd: []string{"/bin/sh"}, WorkingDir: "/root"}}
	img, err := s.load(ctx, m.Digest)
	if !errors.Is(err, ErrNotFound) {
		return img, err
	}
	if err := s.shelve(w, m, "root"); err != nil {
		return Image{}, err
	}
	return s.load(ctx, m.Digest)
}

// skeleton builds the folder of a host image and hashes what goes into it.
type skeleton struct {
	ctx   context.Context
	root  string
	sum   hash.Hash
	binds []runtime.Bind
	files int
}

func (k *skeleton) at(name string) string { return filepath.Join(k.root, name) }

func (k *skeleton) make(supervisor string) error {
	dirs := []struct {
		name string
		perm fs.FileMode
	}{
		{"", 0o755}, {".sirocco", 0o755}, {"etc", 0o755}, {"proc", 0o755}, {"sys", 0o755}, {"dev", 0o755},
		{"dev/shm", fs.ModeSticky | 0o777}, {"tmp", fs.ModeSticky | 0o777}, {"root", 0o700}, {"home", 0o755}, {"home/user", 0o755},
		{"run", 0o755}, {"var", 0o755}, {"var/tmp", fs.ModeSticky | 0o777}, {"usr", 0o755}, {"mnt", 0o755}, {"opt", 0o755}, {"srv", 0o755},
		{".sirocco/run", 0o700},
	}
	for _, d := range dirs {
		if err := k.dir(d.name, d.perm); err != nil {
			return err
		}
	}
	if err := os.Chown(k.at("home/user"), 1000, 1000); err != nil && os.Geteuid() == 0 {
		return fmt.Errorf("own home of user: %w", err)
	}
	if err := k.copyFile(supervisor, ".sirocco/init", 0o555, 0); err != nil {
		return err
	}
	k.bind("/usr")
	for _, name := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		st, err := os.Lstat("/" + name)
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return fmt.Errorf("look at /%s: %w", name, err)
		case st.Mode()&fs.ModeSymlink != 0:
			if err := k.symlink("/"+name, name); err != nil {
				return err
			}
		case st.IsDir():
			if err := k.dir(name, 0o755); err != nil {
				return err
			}
			k.bind("/" + name)
		}
	}
	return k.etc()
}

func (k *skeleton) etc() error {
	users, err := systemAccounts("/etc/passwd", 7)
	if err != nil {
		return err
	}
	groups, err := systemAccounts("/etc/group", 4)
	if err != nil {
		return err
	}
	for _, file := range [][2]string{
		{"etc/passwd", users + "user:x:1000:1000:user:/home/user:/bin/sh\n"},
		{"etc/group", groups + "user:x:1000:\n"},
		{"etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"},
		{"etc/resolv.conf", ""},
		{"etc/hostname", "sandbox\n"},
	} {
		if err := k.write(file[0], file[1]); err != nil {
			return err
		}
	}
	for _, pattern := range hostEtc {
		found, err := filepath.Glob("/etc/" + pattern)
		if err != nil {
			return fmt.Errorf("find /etc/%s: %w", pattern, err)
		}
		sort.Strings(found)
		for _, p := range found {
			if err := k.copyTree(p, p[1:], 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// systemAccounts returns the lines of passwd or group that belong to the
// system, with passwords, real names and members left out. People who have an
// account on this machine are nobody's business in a sandbox.
func systemAccounts(file string, fields int) (string, error) {
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return "root:x:0:0:root:/root:/bin/sh\n", nil
	}
	if err != nil {
		return "", fmt.Errorf("read accounts: %w", err)
	}
	defer f.Close()
	var out strings.Builder
	scan := bufio.NewScanner(io.LimitReader(f, maxHostFile))
	for scan.Scan() {
		p := strings.Split(scan.Text(), ":")
		if len(p) != fields {
			continue
		}
		id, err := strconv.Atoi(p[2])
		if err != nil || id >= 1000 && id != 65534 || p[0] == "user" {
			continue
		}
		p[1] = "x"
		if fields == 7 {
			p[4] = p[0]
		} else {
			p[3] = ""
		}
		fmt.Fprintln(&out, strings.Join(p, ":"))
	}
	if err := scan.Err(); err != nil {
		return "", fmt.Errorf("read accounts: %w", err)
	}
	return out.String(), nil
}

// note adds to the hash that becomes the digest.
func (k *skeleton) note(parts ...string) { fmt.Fprintf(k.sum, "%q\n", parts) }

func (k *skeleton) bind(path string) {
	k.note("bind", path)
	k.binds = append(k.binds, runtime.Bind{Source: path, Target: path})
}

func (k *skeleton) dir(name string, perm fs.FileMode) error {
	k.note("dir", name, perm.String())
	if err := os.MkdirAll(k.at(name), 0o755); err != nil {
		return err
	}
	return os.Chmod(k.at(name), perm)
}

func (k *skeleton) write(name, content string) error {
	k.note("file", name, content)
	return os.WriteFile(k.at(name), []byte(content), 0o644)
}

func (k *skeleton) symlink(from, name string) error {
	target, err := os.Readlink(from)
	if err != nil {
		return fmt.Errorf("read link %s: %w", from, err)
	}
	k.note("link", name, target)
	return os.Symlink(target, k.at(name))
}

// copyTree copies what is at from. A symbolic link that leads into /usr stays a
// link; one that leads elsewhere is replaced by what it points to, so that
// nothing outside the parts listed is needed to read it.
func (k *skeleton) copyTree(from, name string, depth int) error {
	if err := k.ctx.Err(); err != nil {
		return err
	}
	if k.files++; k.files > maxHostFiles || depth > 12 {
		return fmt.Errorf("%w: too many files below /etc", ErrTooLarge)
	}
	st, err := os.Lstat(from)
	if err != nil {
		return nil // gone, or not for us
	}
	if err := os.MkdirAll(filepath.Dir(k.at(name)), 0o755); err != nil {
		return err
	}
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		real, err := filepath.EvalSymlinks(from)
		if err != nil {
			return nil // dangling
		}
		if strings.HasPrefix(real, "/usr/") || filepath.Dir(real) == filepath.Dir(from) {
			return k.symlink(from, name)
		}
		if strings.HasPrefix(real, "/etc/") {
			if to, err := os.Stat(real); err == nil && to.Mode().IsRegular() && to.Mode().Perm()&0o004 != 0 {
				return k.copyFile(real, name, 0o644, maxHostFile)
			}
		}
		return nil
	case st.IsDir():
		if st.Mode().Perm()&0o005 != 0o005 {
			return nil
		}
		if err := k.dir(name, 0o755); err != nil {
			return err
		}
		list, err := os.ReadDir(from)
		if err != nil {
			return nil
		}
		for _, e := range list {
			if err := k.copyTree(filepath.Join(from, e.Name()), filepath.Join(name, e.Name()), depth+1); err != nil {
				return err
			}
		}
		return nil
	case st.Mode().IsRegular() && st.Mode().Perm()&0o004 != 0 && !secretName(name):
		return k.copyFile(from, name, 0o644, maxHostFile)
	default:
		return nil
	}
}

// secretName says whether a file is a key by its name, which somebody made
// readable by mistake.
func secretName(name string) bool {
	return strings.HasSuffix(name, ".key") || strings.Contains(name, "/private/")
}

// copyFile copies one file; larger than limit, if there is one, it is left out.
func (k *skeleton) copyFile(from, name string, perm fs.FileMode, limit int64) error {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	defer src.Close()
	if st, err := src.Stat(); err != nil || limit > 0 && st.Size() > limit {
		return err
	}
	dst, err := os.OpenFile(k.at(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	content := sha256.New()
	_, err = io.Copy(io.MultiWriter(dst, content), src)
	if err := errors.Join(err, dst.Chmod(perm), dst.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	k.note("copy", name, hex.EncodeToString(content.Sum(nil)), perm.String())
	return nil
}
