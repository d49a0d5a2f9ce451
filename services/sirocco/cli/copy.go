package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
	"github.com/spf13/cobra"
)

func (a *app) cpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cp SOURCE TARGET",
		Short: "Copy files and folders into a sandbox, or out of it",
		Long: "cp copies between here and a sandbox. A path in a sandbox is SANDBOX:/absolute/path;\n" +
			"- is standard input or output. A target that is a folder takes the source into it.\n" +
			"Symbolic links are not followed; they and special files are left out, with a word.",
		Example: "  sirocco cp app.py sb-…:/srv/app.py\n  sirocco cp sb-…:/var/log logs\n  sirocco cp sb-…:/etc/passwd -",
		Args:    exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			fromID, from, out := remote(args[0])
			toID, to, in := remote(args[1])
			if in == out {
				return usageError{cmd.CommandPath(), errors.New("one of the two must be in a sandbox, as SANDBOX:/path")}
			}
			id := fromID + toID
			s, err := a.open(cmd.Context(), id)
			if err != nil {
				return err
			}
			c := copier{app: a, sandbox: s}
			if in {
				return c.in(cmd.Context(), args[0], to)
			}
			return c.out(cmd.Context(), from, args[1])
		},
	}
}

// remote splits SANDBOX:/path. What holds a slash before the colon, or no
// colon, is a path here.
func remote(arg string) (id, file string, ok bool) {
	id, file, ok = strings.Cut(arg, ":")
	if !ok || id == "" || strings.ContainsAny(id, `/\.`) {
		return "", "", false
	}
	return id, file, true
}

// copier copies files of one sandbox.
type copier struct {
	app     *app
	sandbox *sirocco.Sandbox
}

// in copies a file or folder from here.
func (c copier) in(ctx context.Context, from, to string) error {
	if from == "-" {
		_, err := c.sandbox.WriteFile(ctx, to, c.app.In, sirocco.WriteOptions{MakeParents: true})
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return failed("name a file or folder that is here.", "%w", err)
	}
	if target, err := c.sandbox.Stat(ctx, to); err == nil && target.GetType() == siroccov1.FileType_FILE_TYPE_DIRECTORY || strings.HasSuffix(to, "/") {
		to = path.Join(to, filepath.Base(from))
	} else if err != nil && sirocco.CodeOf(err) != sirocco.NotFound {
		return err
	}
	if !info.IsDir() {
		return c.fileIn(ctx, from, to, info.Mode())
	}
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		target := path.Join(to, filepath.ToSlash(below))
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			_, err = c.sandbox.MakeDir(ctx, target, uint32(info.Mode().Perm()))
			return err
		case info.Mode().IsRegular():
			return c.fileIn(ctx, name, target, info.Mode())
		}
		c.left(name)
		return nil
	})
}

func (c copier) fileIn(ctx context.Context, from, to string, mode fs.FileMode) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = c.sandbox.WriteFile(ctx, to, f, sirocco.WriteOptions{Mode: uint32(mode.Perm()), MakeParents: true})
	return err
}

// out copies a file or folder to here.
func (c copier) out(ctx context.Context, from, to string) error {
	if to == "-" {
		return c.read(ctx, from, c.app.Out)
	}
	info, err := c.sandbox.Stat(ctx, from)
	if err != nil {
		return err
	}
	if target, err := os.Stat(to); err == nil && target.IsDir() || strings.HasSuffix(to, "/") {
		to = filepath.Join(to, path.Base(from))
	}
	return c.treeOut(ctx, info, to)
}

func (c copier) treeOut(ctx context.Context, info *siroccov1.FileInfo, to string) error {
	switch info.GetType() {
	case siroccov1.FileType_FILE_TYPE_DIRECTORY:
		if err := os.MkdirAll(to, 0o755); err != nil { //nolint:gosec // as mkdir -p
			return err
		}
		files, err := c.sandbox.ListFiles(ctx, info.GetPath())
		if err != nil {
			return err
		}
		for _, f := range files {
			name := path.Base(f.GetPath())
			// The names come from inside the sandbox: nothing may leave the target.
			if name == "." || name == ".." || name == "/" || !filepath.IsLocal(name) {
				return fmt.Errorf("the sandbox names a file %q", f.GetPath())
			}
			if err := c.treeOut(ctx, f, filepath.Join(to, name)); err != nil {
				return err
			}
		}
		return nil
	case siroccov1.FileType_FILE_TYPE_REGULAR:
		return c.fileOut(ctx, info, to)
	}
	c.left(info.GetPath())
	return nil
}

// fileOut writes a file here, whole or not at all.
func (c copier) fileOut(ctx context.Context, info *siroccov1.FileInfo, to string) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(to), ".sirocco-*")
	if err != nil {
		return failed("make the folder first.", "%w", err)
	}
	defer func() {
		_ = temp.Close()
		if err != nil {
			_ = os.Remove(temp.Name())
		}
	}()
	if err := c.read(ctx, info.GetPath(), temp); err != nil {
		return err
	}
	if err := temp.Chmod(fs.FileMode(info.GetMode()) & 0o777); err != nil {
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	return os.Rename(temp.Name(), to)
}

func (c copier) read(ctx context.Context, from string, w io.Writer) error {
	r, err := c.sandbox.ReadFile(ctx, from, 0, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(w, r)
	return err
}

func (c copier) left(name string) {
	fmt.Fprintf(c.app.Err, "sirocco: %s is left out: it is no file and no folder\n", name)
}
