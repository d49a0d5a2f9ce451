package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/sirocco-run/sirocco/services/sirocco/cli"
)

const commandsHead = `<!-- Made by docs/gen from the commands' own help: run make docs-config, don't edit. -->
# The command line

What ` + "`sirocco <command> --help`" + ` says, for every command. Exit codes are in [errors.md](errors.md).
`

// commands writes cli.md.
func commands(ctx context.Context) ([]byte, error) {
	var out bytes.Buffer
	out.WriteString(commandsHead)
	err := describe(ctx, &out, nil)
	return out.Bytes(), err
}

// describe writes the help of a command and of those below it.
func describe(ctx context.Context, out *bytes.Buffer, path []string) error {
	help, err := helpOf(ctx, path)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n## %s\n\n```\n%s\n```\n", strings.Join(append([]string{"sirocco"}, path...), " "), strings.TrimSpace(help))
	for _, name := range below(help) {
		if err := describe(ctx, out, append(append([]string{}, path...), name)); err != nil {
			return err
		}
	}
	return nil
}

func helpOf(ctx context.Context, path []string) (string, error) {
	var stdout, stderr bytes.Buffer
	shell := cli.Shell{In: &bytes.Buffer{}, Out: &stdout, Err: &stderr, Getenv: func(string) string { return "" }, Home: "/"}
	args := append(append([]string{}, path...), "--help")
	if code := cli.Main(ctx, shell, args); code != 0 {
		return "", fmt.Errorf("sirocco %s: exit code %d: %s", strings.Join(args, " "), code, stderr.String())
	}
	return global(stdout.String(), len(path) == 0), nil
}

// global leaves out the flags that every command has, but for the first.
func global(help string, first bool) string {
	before, rest, ok := strings.Cut(help, "\nGlobal Flags:\n")
	if !ok || first {
		return help
	}
	_, after, _ := strings.Cut(rest, "\n\n")
	return before + after
}

// below returns the names of the commands that a help lists.
func below(help string) []string {
	var names []string
	listing := false
	for line := range strings.Lines(help) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "" || !strings.HasPrefix(line, "  "):
			listing = strings.HasSuffix(line, "Commands:") || line == "Sandboxes:" || line == "The platform:"
		case listing:
			if name := strings.Fields(line)[0]; name != "help" && name != "completion" {
				names = append(names, name)
			}
		}
	}
	return names
}
