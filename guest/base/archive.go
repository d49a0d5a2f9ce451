package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// gzipFiles is gzip, gunzip and zcat.
func gzipFiles(p *proc) int {
	f, err := p.flags("cdfk123456789nqv", map[string]byte{"stdout": 'c', "decompress": 'd', "keep": 'k', "force": 'f', "best": '9', "fast": '1'})
	if err != nil {
		return p.fail(err)
	}
	unpack := f.on['d'] || p.name == "gunzip" || p.name == "zcat"
	toOut := f.on['c'] || p.name == "zcat" || len(f.args) == 0
	level := gzip.DefaultCompression
	for c := byte('1'); c <= '9'; c++ {
		if f.on[c] {
			level = int(c - '0')
		}
	}
	convert := func(w io.Writer, r io.Reader) error {
		if unpack {
			z, err := gzip.NewReader(bufio.NewReader(r))
			if err != nil {
				return err
			}
			_, err = io.Copy(w, z)
			return err
		}
		z, err := gzip.NewWriterLevel(w, level)
		if err != nil {
			return err
		}
		_, err = io.Copy(z, r)
		return errors.Join(err, z.Close())
	}
	return p.each(f.args, func(name string, r io.Reader) error {
		if toOut || name == "-" {
			return convert(p.out, r)
		}
		to := name + ".gz"
		if unpack {
			var ok bool
			if to, ok = strings.CutSuffix(name, ".gz"); !ok {
				if to, ok = strings.CutSuffix(name, ".tgz"); !ok {
					return fmt.Errorf("%s: unknown suffix", name)
				}
				to += ".tar"
			}
		}
		how := os.O_WRONLY | os.O_CREATE | os.O_EXCL
		if f.on['f'] {
			how = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
		}
		out, err := os.OpenFile(p.path(to), how, 0o666)
		if err != nil {
			return err
		}
		if err := errors.Join(convert(out, r), out.Close()); err != nil {
			_ = os.Remove(p.path(to))
			return err
		}
		if !f.on['k'] {
			return os.Remove(p.path(name))
		}
		return nil
	})
}

// tarFiles is tar: create, list and extract, with gzip.
func tarFiles(p *proc) int {
	if len(p.args) > 0 && !strings.HasPrefix(p.args[0], "-") {
		p.args[0] = "-" + p.args[0]
	}
	f, err := p.flags("cxtzvf:C:OpkmjS:", map[string]byte{"create": 'c', "extract": 'x', "list": 't', "gzip": 'z', "verbose": 'v', "file": 'f', "directory": 'C', "strip-components": 'S'})
	if err != nil {
		return p.fail(err)
	}
	if f.on['j'] {
		return p.fail(errors.New("bzip2 is not supported"))
	}
	t := &tarrer{p: p, f: f, dir: p.path(f.vals['C'])}
	if f.vals['C'] == "" {
		t.dir = p.path(".")
	}
	if t.strip, err = strconv.Atoi("0" + f.vals['S']); err != nil {
		return p.fail(err)
	}
	switch {
	case f.on['c']:
		err = t.create()
	case f.on['x'], f.on['t']:
		err = t.extract()
	default:
		return p.usage("-c|-x|-t [-zv] [-f file] [-C dir] [name...]")
	}
	if err != nil {
		return p.fail(err)
	}
	return 0
}

type tarrer struct {
	p     *proc
	f     flagSet
	dir   string
	strip int
}

func (t *tarrer) create() (err error) {
	out := t.p.out
	if name := t.f.vals['f']; name != "" && name != "-" {
		file, err := os.Create(t.p.path(name))
		if err != nil {
			return err
		}
		defer file.Close()
		out = file
		t.f.on['z'] = t.f.on['z'] || strings.HasSuffix(name, ".gz") || strings.HasSuffix(name, ".tgz")
	}
	if t.f.on['z'] {
		z := gzip.NewWriter(out)
		defer func() { err = errors.Join(err, z.Close()) }()
		out = z
	}
	w := tar.NewWriter(out)
	defer func() { err = errors.Join(err, w.Close()) }()
	if len(t.f.args) == 0 {
		return errors.New("nothing to put into the archive")
	}
	links := map[uint64]string{}
	for _, a := range t.f.args {
		root := a
		if !filepath.IsAbs(a) {
			root = filepath.Join(t.dir, a)
		}
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			return t.add(w, path, strings.TrimPrefix(filepath.Join(a, rel), "/"), links)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *tarrer) add(w *tar.Writer, path, name string, links map[uint64]string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	target := ""
	if st.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(st, target)
	if err != nil {
		return err
	}
	h.Name = name
	if st.IsDir() {
		h.Name += "/"
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && st.Mode().IsRegular() && sys.Nlink > 1 {
		if first, ok := links[sys.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			links[sys.Ino] = name
		}
	}
	if t.f.on['v'] {
		fmt.Fprintln(t.p.err, h.Name)
	}
	if err := w.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.CopyN(w, file, h.Size)
	return err
}

func (t *tarrer) extract() error {
	in := t.p.in
	if name := t.f.vals['f']; name != "" && name != "-" {
		file, err := os.Open(t.p.path(name))
		if err != nil {
			return err
		}
		defer file.Close()
		in = file
	}
	b := bufio.NewReader(in)
	if head, _ := b.Peek(2); len(head) == 2 && head[0] == 0x1f && head[1] == 0x8b {
		z, err := gzip.NewReader(b)
		if err != nil {
			return err
		}
		b = bufio.NewReader(z)
	}
	// A root keeps names with ".." and links in the archive from leading out.
	root, err := os.OpenRoot(t.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	r := tar.NewReader(b)
	var all error
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			return err
		}
		if err := t.p.ctx.Err(); err != nil {
			return err
		}
		if !t.wanted(h.Name) {
			continue
		}
		if t.f.on['t'] {
			if t.f.on['v'] {
				fmt.Fprintf(t.p.out, "%s %d/%d %9d %s ", modeString(h.FileInfo().Mode()), h.Uid, h.Gid, h.Size, h.ModTime.Format("2006-01-02 15:04"))
			}
			fmt.Fprintln(t.p.out, h.Name)
			continue
		}
		name := strings.TrimPrefix(filepath.Clean("/"+h.Name), "/")
		for range t.strip {
			_, name, _ = strings.Cut(name, "/")
		}
		if name == "" {
			continue
		}
		if t.f.on['v'] {
			fmt.Fprintln(t.p.out, h.Name)
		}
		if t.f.on['O'] {
			_, err = io.Copy(t.p.out, r)
		} else {
			err = t.write(root, name, h, r)
		}
		if err != nil {
			t.p.fail(fmt.Errorf("%s: %w", h.Name, err))
			all = errors.New("some files could not be extracted")
		}
	}
}

func (t *tarrer) wanted(name string) bool {
	if len(t.f.args) == 0 {
		return true
	}
	name = filepath.Clean(name)
	for _, a := range t.f.args {
		if a = filepath.Clean(a); name == a || strings.HasPrefix(name, a+"/") {
			return true
		}
	}
	return false
}

func (t *tarrer) write(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	if dir := filepath.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	mode := h.FileInfo().Mode()
	if h.Typeflag != tar.TypeDir {
		_ = root.Remove(name)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, mode.Perm()|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case tar.TypeReg:
		out, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode.Perm())
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(strings.TrimPrefix(filepath.Clean("/"+h.Linkname), "/"), name)
	default:
		return fmt.Errorf("type %q is not supported", h.Typeflag)
	}
	if os.Geteuid() == 0 {
		if err := root.Lchown(name, h.Uid, h.Gid); err != nil {
			return err
		}
	}
	return errors.Join(root.Chmod(name, mode), root.Chtimes(name, h.ModTime, h.ModTime))
}
