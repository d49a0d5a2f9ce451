// Package gvisortest gives tests of any package what real sandboxes need: a runsc
// of the right version, and images to start from.
package gvisortest

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/pin"
	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/runscbuild"
	"golang.org/x/sys/unix"
)

// RunscEnv names the environment variable that says where runsc is.
const RunscEnv = "SIROCCO_RUNSC"

// GuestPath is where GuestImage has the test guest.
const GuestPath = "/guest"

// Runsc returns the path of a runsc that fits package gvisor: the one that
// RunscEnv names, or bin/runsc of the repository, or one that is built on first
// use and kept in the user's cache folder. The test fails if there is none, or if
// it does not run as root.
func Runsc(tb testing.TB) string {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("this test runs real sandboxes, which needs root: run it as root")
	}
	if p := os.Getenv(RunscEnv); p != "" {
		if err := pin.Check(p); err != nil {
			tb.Fatalf("%s: %v", RunscEnv, err)
		}
		return p
	}
	root := repository(tb)
	if p := filepath.Join(root, "bin", "runsc"); pin.Check(p) == nil {
		return p
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		tb.Fatalf("find a folder to keep runsc in: %v", err)
	}
	p := filepath.Join(cache, "sirocco", "runsc-"+pin.Version)
	unlock := lock(tb, p)
	defer unlock()
	if pin.Check(p) == nil {
		return p
	}
	if err := runscbuild.Build(tb.Context(), root, p); err != nil {
		tb.Fatal(err)
	}
	return p
}

// lock lets one test program at a time build.
func lock(tb testing.TB, p string) func() {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		tb.Fatal(err)
	}
	f, err := os.OpenFile(p+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		tb.Fatal(err)
	}
	return func() { f.Close() }
}

// repository returns the folder of this module.
func repository(tb testing.TB) string {
	tb.Helper()
	_, file, _, _ := runtime.Caller(0)
	if !filepath.IsAbs(file) {
		tb.Fatal("can't find the repository: tests that need runsc can't be built with -trimpath, unless " + RunscEnv + " is set")
	}
	return filepath.Join(filepath.Dir(file), "..", "..", "..", "..")
}

// GuestImage builds the test guest and returns an EROFS image that holds nothing
// else. See package testguest for what it does.
func GuestImage(tb testing.TB) string {
	tb.Helper()
	img := filepath.Join(tb.TempDir(), "guest.erofs")
	Image(tb, img, map[string]string{GuestPath: GuestBinary(tb)})
	return img
}

// GuestBinary builds the test guest, a static program, and returns its path.
func GuestBinary(tb testing.TB) string {
	tb.Helper()
	return build(tb, "./pkg/runtime/gvisor/internal/testguest")
}

// SupervisorPath is where SupervisorImage has the supervisor.
const SupervisorPath = "/.sirocco/init"

// SupervisorImage builds the supervisor and the test guest and returns an EROFS image
// that holds nothing else.
func SupervisorImage(tb testing.TB) string {
	tb.Helper()
	img := filepath.Join(tb.TempDir(), "supervisor.erofs")
	Image(tb, img, map[string]string{GuestPath: GuestBinary(tb), SupervisorPath: build(tb, "./guest/init")})
	return img
}

// build builds a static program of this repository.
func build(tb testing.TB, pkg string) string {
	tb.Helper()
	bin := filepath.Join(tb.TempDir(), path.Base(pkg))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, pkg)
	cmd.Dir = repository(tb)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return bin
}

// Image writes an EROFS image to out that holds files (path inside to path of this
// machine), executable, and an empty /tmp.
func Image(tb testing.TB, out string, files map[string]string) {
	tb.Helper()
	f, err := os.Create(out)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if err := writeImage(erofs.Create(f), files); err != nil {
		tb.Fatalf("write image: %v", err)
	}
}

func writeImage(w *erofs.Writer, files map[string]string) error {
	if err := w.Mkdir("/tmp", 0o777|fs.ModeSticky); err != nil {
		return err
	}
	for to, from := range files {
		for i := 1; i < len(to); i++ {
			if to[i] == '/' {
				if err := w.Mkdir(to[:i], 0o755); err != nil && !strings.Contains(err.Error(), "exist") {
					return err
				}
			}
		}
		b, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		g, err := w.Create(path.Clean(to))
		if err != nil {
			return err
		}
		if _, err := g.Write(b); err != nil {
			return err
		}
		if err := g.Close(); err != nil {
			return err
		}
		if err := w.Chmod(path.Clean(to), 0o755); err != nil {
			return fmt.Errorf("chmod %s: %w", to, err)
		}
	}
	return w.Close()
}
