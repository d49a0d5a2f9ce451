// Package pin says which gVisor this repository works with, and recognises the
// runsc that was built for it.
package pin

import (
	"fmt"
	"os/exec"
	"strings"

	"github.com/sirocco-run/sirocco/pkg/runtime/gvisor/launch"
)

// Module is the version of the gvisor.dev/gvisor module. A test compares it with
// go.mod.
const Module = "v0.0.0-20260905035102-160fafc42237"

// Version is what the right runsc says its version is. It is set when runsc is
// built (-X gvisor.dev/gvisor/runsc/version.version=...); gVisor writes it into
// checkpoints and refuses those of another.
const Version = Module + "-" + launch.Revision

// Check returns an error that says what to do when the file at path is not the
// runsc of Version.
func Check(path string) error {
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return fmt.Errorf("run %s --version: %w (build it with: make bin/runsc)", path, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	if got := strings.TrimPrefix(line, "runsc version "); got != Version {
		return fmt.Errorf("%s has version %q, but this program needs %q (build it with: make bin/runsc)", path, got, Version)
	}
	return nil
}
