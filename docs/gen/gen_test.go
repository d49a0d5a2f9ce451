package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/program"
	"github.com/spf13/pflag"
)

func TestFilesAreFresh(t *testing.T) {
	if err := run(t.Context(), "..", true); err != nil {
		t.Fatal(err)
	}
}

func TestEveryFlagHasItsRow(t *testing.T) {
	page := string(configuration())
	for _, s := range sections() {
		fs := pflag.NewFlagSet(s.title, pflag.ContinueOnError)
		s.flags(fs)
		fs.VisitAll(func(f *pflag.Flag) {
			if !strings.Contains(page, "| `--"+f.Name) || !strings.Contains(page, program.EnvName(f.Name)) {
				t.Errorf("%s: --%s is not on the page", s.title, f.Name)
			}
		})
	}
}

func TestEveryCommandIsDescribed(t *testing.T) {
	page, err := commands(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"up", "run", "exec", "ls", "events", "rm", "key create", "image import", "node drain", "bench tti"} {
		if !bytes.Contains(page, []byte("\n## sirocco "+name+"\n")) {
			t.Errorf("sirocco %s is missing", name)
		}
	}
}
