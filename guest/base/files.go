package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

func pwd(p *proc) int {
	dir := p.dir
	if dir == "" {
		var err error
		if dir, err = os.Getwd(); err != nil {
			return p.fail(err)
		}
	}
	fmt.Fprintln(p.out, dir)
	return 0
}

func basename(p *proc) int {
	if len(p.args) == 0 {
		return p.usage("path [suffix]")
	}
	base := filepath.Base(p.args[0])
	if len(p.args) > 1 && base != p.args[1] {
		base = strings.TrimSuffix(base, p.args[1])
	}
	fmt.Fprintln(p.out, base)
	return 0
}

func dirname(p *proc) int {
	if len(p.args) == 0 {
		return p.usage("path...")
	}
	for _, a := range p.args {
		fmt.Fprintln(p.out, filepath.Dir(strings.TrimRight(a, "/")+strings.Repeat("/", b2i(strings.Trim(a, "/") == "" && a != ""))))
	}
	return 0
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// targets splits the arguments of cp, mv and ln into sources and where each of

// them goes.

func (p *proc) targets(args []string, into string) (from, to []string, err error) {
	if into == "" {
		if len(args) < 2 {
			return nil, nil, errors.New("source and target are needed")
		}
		into, args = args[len(args)-1], args[:len(args)-1]
	}
	st, err := os.Stat(p.path(into))
	dir := err == nil && st.IsDir()
	if len(args) > 1 && !dir {
		return nil, nil, fmt.Errorf("%s is not a directory", into)
	}
	for _, a := range args {
		target := into
		if dir {
			target = filepath.Join(into, filepath.Base(a))
		}
		from, to = append(from, p.path(a)), append(to, p.path(target))
	}
	return from, to, nil
}

func cp(p *proc) int {
	f, err := p.flags("rRafpvdPLnit:T", map[string]byte{"recursive": 'r', "archive": 'a', "force": 'f', "verbose": 'v', "target-directory": 't'})
	if err != nil {
		return p.fail(err)
	}
	from, to, err := p.targets(f.args, f.vals['t'])
	if err != nil {
		return p.fail(err)
	}
	c := copier{p: p, keep: f.on['a'] || f.on['p'], links: (f.on['a'] || f.on['d'] || f.on['P'] || f.on['r'] || f.on['R']) && !f.on['L'], noClobber: f.on['n']}
	c.deep = f.on['r'] || f.on['R'] || f.on['a']
	status := 0
	for i := range from {
		if c.deep && strings.HasPrefix(to[i]+"/", from[i]+"/") {
			status = p.fail(fmt.Errorf("cannot copy %s into itself", f.args[i]))
			continue
		}
		if err := c.copy(from[i], to[i]); err != nil {
			status = p.fail(err)
		} else if f.on['v'] {
			fmt.Fprintf(p.out, "%s -> %s\n", from[i], to[i])
		}
	}
	return status
}

// copier copies files and trees.

type copier struct {
	p                            *proc
	deep, keep, links, noClobber bool
}

func (c copier) copy(from, to string) error {
	if err := c.p.ctx.Err(); err != nil {
		return err
	}
	stat := os.Stat
	if c.links {
		stat = os.Lstat
	}
	st, err := stat(from)
	if err != nil {
		return err
	}
	if old, err := os.Stat(to); err == nil {
		if os.SameFile(old, st) {
			return fmt.Errorf("%s and %s are the same file", from, to)
		}
		if c.noClobber && !st.IsDir() {
			return nil
		}
	}
	switch {
	case st.IsDir():
		if !c.deep {
			return fmt.Errorf("%s is a directory (not copied without -r)", from)
		}
		if err := os.Mkdir(to, st.Mode().Perm()|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		list, err := os.ReadDir(from)
		if err != nil {
			return err
		}
		var all error
		for _, e := range list {
			all = errors.Join(all, c.copy(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())))
		}
		return errors.Join(all, c.attributes(to, st))
	case st.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		_ = os.Remove(to)
		return os.Symlink(target, to)
	case st.Mode()&fs.ModeNamedPipe != 0:
		return syscall.Mkfifo(to, uint32(st.Mode().Perm()))
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, st.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err := errors.Join(err, dst.Close()); err != nil {
		return err
	}
	return c.attributes(to, st)
}

func (c copier) attributes(to string, st fs.FileInfo) error {
	if !c.keep {
		return nil
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		_ = os.Lchown(to, int(sys.Uid), int(sys.Gid)) // only root may
	}
	return errors.Join(os.Chmod(to, st.Mode()), os.Chtimes(to, st.ModTime(), st.ModTime()))
}

func mv(p *proc) int {
	f, err := p.flags("finvt:T", map[string]byte{"force": 'f', "no-clobber": 'n', "target-directory": 't'})
	if err != nil {
		return p.fail(err)
	}
	from, to, err := p.targets(f.args, f.vals['t'])
	if err != nil {
		return p.fail(err)
	}
	status := 0
	for i := range from {
		if _, err := os.Lstat(to[i]); err == nil && f.on['n'] {
			continue
		}
		err := os.Rename(from[i], to[i])
		if errors.Is(err, syscall.EXDEV) {
			if err = (copier{p: p, deep: true, keep: true, links: true}).copy(from[i], to[i]); err == nil {
				err = os.RemoveAll(from[i])
			}
		}
		var link *os.LinkError
		if errors.As(err, &link) {
			err = fmt.Errorf("%s to %s: %w", link.Old, link.New, link.Err)
		}
		if err != nil {
			status = p.fail(err)
		}
	}
	return status
}

func rm(p *proc) int {
	f, err := p.flags("rRfidv", map[string]byte{"recursive": 'r', "force": 'f', "dir": 'd'})
	if err != nil {
		return p.fail(err)
	}
	if len(f.args) == 0 && !f.on['f'] {
		return p.usage("[-rf] file...")
	}
	status := 0
	for _, a := range f.args {
		path := p.path(a)
		st, err := os.Lstat(path)
		switch base := filepath.Base(a); {
		case base == "." || base == ".." || filepath.Clean(path) == "/":
			err = fmt.Errorf("refusing to remove %q", a)
		case err != nil:
			if f.on['f'] && errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		case st.IsDir() && (f.on['r'] || f.on['R']):
			err = os.RemoveAll(path)
		case st.IsDir() && !f.on['d']:
			err = fmt.Errorf("%s: is a directory", a)
		default:
			err = os.Remove(path)
		}
		if err != nil {
			status = p.fail(err)
		}
	}
	return status
}

func rmdir(p *proc) int {
	f, err := p.flags("p", nil)
	if err != nil {
		return p.fail(err)
	}
	status := 0
	for _, a := range f.args {
		for d := filepath.Clean(a); ; d = filepath.Dir(d) {
			if err := syscall.Rmdir(p.path(d)); err != nil {
				status = p.fail(fmt.Errorf("%s: %w", d, err))
				break
			}
			if !f.on['p'] || filepath.Dir(d) == "." || filepath.Dir(d) == "/" {
				break
			}
		}
	}
	return status
}

// dd copies blocks: if, of, bs, count, skip, seek and conv=notrunc.

// mktemp makes a file or, with -d, a folder of a name not used before: each X

// at the end of the template becomes random.
