// Package runscbuild builds the runsc that package gvisor needs. It is gVisor's at
// the version of go.mod, with these differences:
//
//   - The main package is this repository's: see package launch.
//   - One file, which copies between a forwarded port and its client, is replaced
//     by portforward.go.overlay, which says why.
//   - On amd64 one file, which has no seccomp program, is replaced by
//     seccomp.go.overlay, which has the one that gVisor would otherwise compile at
//     the start of every sandbox: see the command seccompgen.
//   - Small edits, each with its reason in edits.go.
//
// The go command refuses to replace files of the module cache, so the build sees
// gVisor through a symbolic link, under a go.mod of its own. With -trimpath the
// compiled packages don't depend on where the source lies: whatever else is built
// with -trimpath and without cgo shares them.
package runscbuild

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/pin"
)

const (
	mainPackage = "github.com/sirocco-run/sirocco/pkg/runtime/gvisor/runsc"
	module      = "gvisor.dev/gvisor"
)

//go:embed portforward.go.overlay
var portforward []byte

//go:embed seccomp.go.overlay
var seccomp []byte

// replacements returns the files that are not gVisor's own, by their path in its
// module.
func replacements(arch string) map[string][]byte {
	r := map[string][]byte{"runsc/boot/portforward/portforward.go": portforward}
	if arch == "amd64" {
		r["runsc/boot/filter/filter_precompiled.go"] = seccomp
	}
	return r
}

// Build writes runsc to out, with the version that pin.Check asks for. dir is a
// folder of this repository's module. The file appears whole or not at all, so that
// builds may race.
//
// cgo is off: with it a sandbox can't drop its rights without starting again, and
// dies on the way.
func Build(ctx context.Context, dir, out string) error {
	if err := build(ctx, dir, out); err != nil {
		return fmt.Errorf("build runsc: %w", err)
	}
	return nil
}

func build(ctx context.Context, dir, out string) error {
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(out), ".runsc-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	overlay, modfile, err := prepare(ctx, dir, tmp)
	if err != nil {
		return err
	}
	bin := filepath.Join(tmp, "runsc")
	if _, err := run(ctx, dir, "build", "-trimpath", "-buildvcs=false",
		// -mod=mod lets the go command complete that copy of go.mod, not the original.
		"-mod=mod", "-modfile="+modfile, "-overlay="+overlay,
		"-ldflags=-s -w -X gvisor.dev/gvisor/runsc/version.version="+pin.Version,
		"-o", bin, mainPackage); err != nil {
		return err
	}
	if err := pin.Check(bin); err != nil {
		return err
	}
	return os.Rename(bin, out)
}

// prepare writes into tmp what makes the build see gVisor with files replaced.
func prepare(ctx context.Context, dir, tmp string) (overlay, modfile string, err error) {
	source, err := run(ctx, dir, "list", "-m", "-f", "{{.Dir}}", module)
	if err != nil {
		return "", "", err
	}
	link := filepath.Join(tmp, "gvisor")
	if err := os.Symlink(source, link); err != nil {
		return "", "", err
	}
	arch, err := run(ctx, dir, "env", "GOARCH")
	if err != nil {
		return "", "", err
	}
	files := replacements(arch)
	for _, e := range edits(arch) {
		content := files[e.file]
		if content == nil {
			if content, err = os.ReadFile(filepath.Join(link, e.file)); err != nil {
				return "", "", fmt.Errorf("gVisor no longer has the file to edit: %w", err)
			}
		}
		if files[e.file], err = e.apply(content); err != nil {
			return "", "", err
		}
	}
	replace := map[string]string{}
	for name, content := range files {
		target := filepath.Join(link, name)
		if _, err := os.Stat(target); err != nil {
			return "", "", fmt.Errorf("gVisor no longer has the file to replace: %w", err)
		}
		file := filepath.Join(tmp, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return "", "", err
		}
		replace[target] = file
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		return "", "", err
	}
	overlay = filepath.Join(tmp, "overlay.json")
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		return "", "", err
	}

	gomod, err := run(ctx, dir, "env", "GOMOD")
	if err != nil {
		return "", "", err
	}
	modfile = filepath.Join(tmp, "go.mod")
	mod, err := os.ReadFile(gomod)
	if err != nil {
		return "", "", err
	}
	mod = append(mod, "\nreplace "+module+" => "+link+"\n"...)
	if err := os.WriteFile(modfile, mod, 0o600); err != nil {
		return "", "", err
	}
	sum, err := os.ReadFile(strings.TrimSuffix(gomod, ".mod") + ".sum")
	if err != nil {
		return "", "", err
	}
	// In a workspace, some of the sums are in its own file.
	if more, err := os.ReadFile(filepath.Join(filepath.Dir(gomod), "go.work.sum")); err == nil {
		sum = append(append(sum, '\n'), more...)
	}
	return overlay, modfile, os.WriteFile(filepath.Join(tmp, "go.sum"), sum, 0o600)
}

// run runs the go command and returns what it prints.
func run(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, &stderr)
	}
	return strings.TrimSpace(stdout.String()), nil
}
