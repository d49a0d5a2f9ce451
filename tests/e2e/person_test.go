package e2e

import (
	"testing"
)

// What a person sees, as in the README.
func TestRunPrintsHello(t *testing.T) {
	t.Parallel()
	out, errs, code := up.CLI(t.Context(), nil, "run", "--", "sh", "-c", "echo hello from $(uname -n)")
	if code != 0 || out[:14] != "hello from sb-" {
		t.Fatalf("exit code %d: %q %q", code, out, errs)
	}
}
