// Command gen writes docs/configuration.md and docs/cli.md from the programs'
// own flags, so that neither can say what the code does not. `make
// docs-config` runs it, and its test fails when the files are stale.
//
//	go run ./docs/gen [--check] [folder]
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// files are what is written, by name, and what makes each.
var files = map[string]func(context.Context) ([]byte, error){
	"configuration.md": func(context.Context) ([]byte, error) { return configuration(), nil },
	"cli.md":           commands,
}

func main() {
	args := os.Args[1:]
	check := len(args) > 0 && args[0] == "--check"
	if check {
		args = args[1:]
	}
	dir := "docs"
	if len(args) > 0 {
		dir = args[0]
	}
	if err := run(context.Background(), dir, check); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// run writes the files into dir or, with check, says which are stale.
func run(ctx context.Context, dir string, check bool) error {
	var errs []error
	for name, make := range files {
		want, err := make(ctx)
		if err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
		path := filepath.Join(dir, name)
		if !check {
			errs = append(errs, os.WriteFile(path, want, 0o644)) //nolint:gosec // documents are public
			continue
		}
		have, err := os.ReadFile(path) //nolint:gosec // the caller names the folder
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		case !bytes.Equal(have, want):
			errs = append(errs, fmt.Errorf("%s is stale: run make docs-config and commit what it changes", path))
		}
	}
	slices.SortFunc(errs, func(a, b error) int {
		return bytes.Compare(fmt.Append(nil, a), fmt.Append(nil, b))
	})
	return errors.Join(errs...)
}
