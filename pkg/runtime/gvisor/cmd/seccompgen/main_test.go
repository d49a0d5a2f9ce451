package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestProgramIsCurrent: the program that runsc is built with is the one that gVisor,
// at the version of go.mod, would compile by itself. It runs the command, as a
// program with the race detector has other rules.
func TestProgramIsCurrent(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "seccompgen")
	cmd := exec.Command("go", "build", "-o", bin, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	file := "../../runscbuild/seccomp.go.overlay"
	if out, err := exec.Command(bin, "--check", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// It does see a difference.
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	i := len(b) / 2
	for b[i] != '1' {
		i++
	}
	b[i] = '2'
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(bin, "--check", other).Run(); err == nil {
		t.Error("a changed program passes for the right one")
	}
}
