package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func ln(p *proc) int {
	f, err := p.flags("sfnvTr", map[string]byte{"symbolic": 's', "force": 'f', "no-dereference": 'n'})
	if err != nil || len(f.args) == 0 {
		return p.usage("[-sfn] target... link")
	}
	args := f.args
	if len(args) == 1 {
		args = append(args, filepath.Base(args[0]))
	}
	link := p.path(args[len(args)-1])
	st, err := os.Stat(link)
	into := err == nil && st.IsDir()
	if l, err := os.Lstat(link); err == nil && l.Mode()&fs.ModeSymlink != 0 && (f.on['n'] || f.on['T']) {
		into = false
	}
	status := 0
	for _, target := range args[:len(args)-1] {
		name := link
		if into {
			name = filepath.Join(link, filepath.Base(target))
		}
		if f.on['f'] {
			_ = os.Remove(name)
		}
		if f.on['s'] {
			err = os.Symlink(target, name)
		} else {
			err = os.Link(p.path(target), name)
		}
		if err != nil {
			status = p.fail(err)
		}
	}
	return status
}

func readlink(p *proc) int {
	f, err := p.flags("fnem", nil)
	if err != nil || len(f.args) == 0 {
		return p.usage("[-f] path...")
	}
	status := 0
	for _, a := range f.args {
		var target string
		if f.on['f'] || f.on['e'] || f.on['m'] || p.name == "realpath" {
			target, err = filepath.Abs(p.path(a))
			if err == nil {
				var real string
				if real, err = filepath.EvalSymlinks(target); err == nil {
					target = real
				} else if parent, perr := filepath.EvalSymlinks(filepath.Dir(target)); perr == nil && !f.on['e'] {
					target, err = filepath.Join(parent, filepath.Base(target)), nil
				}
			}
		} else {
			target, err = os.Readlink(p.path(a))
		}
		if err != nil {
			status = 1
			if p.name == "realpath" {
				p.fail(err)
			}
			continue
		}
		end := "\n"
		if f.on['n'] {
			end = ""
		}
		fmt.Fprint(p.out, target, end)
	}
	return status
}

func chown(p *proc) int {
	f, err := p.flags("Rhf", map[string]byte{"recursive": 'R'})
	if err != nil || len(f.args) < 2 {
		return p.usage("[-R] owner[:group] file...")
	}
	uid, gid := -1, -1
	user, group, _ := strings.Cut(f.args[0], ":")
	if p.name == "chgrp" {
		user, group = "", user
	}
	if user != "" {
		if uid, err = accountID("/etc/passwd", user); err != nil {
			return p.fail(err)
		}
	}
	if group != "" {
		if gid, err = accountID("/etc/group", group); err != nil {
			return p.fail(err)
		}
	}
	status := 0
	for _, a := range f.args[1:] {
		err := os.Lchown(p.path(a), uid, gid)
		if f.on['R'] {
			err = filepath.WalkDir(p.path(a), func(path string, _ fs.DirEntry, err error) error {
				return errors.Join(err, os.Lchown(path, uid, gid))
			})
		}
		if err != nil {
			status = p.fail(err)
		}
	}
	return status
}

func truncate(p *proc) int {
	f, err := p.flags("s:c", map[string]byte{"size": 's'})
	if err != nil || !f.on['s'] || len(f.args) == 0 {
		return p.usage("-s size file...")
	}
	size, err := f.number('s', 0)
	if err != nil {
		return p.fail(err)
	}
	for _, a := range f.args {
		file, err := os.OpenFile(p.path(a), os.O_WRONLY|os.O_CREATE, 0o666)
		if err == nil {
			err = errors.Join(file.Truncate(size), file.Close())
		}
		if err != nil {
			return p.fail(err)
		}
	}
	return 0
}

func dd(p *proc) int {
	v := map[string]string{"bs": "512", "count": "-1", "skip": "0", "seek": "0"}
	for _, a := range p.args {
		k, val, ok := strings.Cut(a, "=")
		if !ok {
			return p.usage("[if=file] [of=file] [bs=n] [count=n] [skip=n] [seek=n] [conv=notrunc]")
		}
		v[k] = val
	}
	n := map[string]int64{}
	for _, k := range []string{"bs", "count", "skip", "seek"} {
		var err error
		if n[k], err = parseSize(v[k]); err != nil {
			return p.fail(fmt.Errorf("%s: %w", k, err))
		}
	}
	if n["bs"] <= 0 || n["bs"] > 1<<30 {
		return p.fail(fmt.Errorf("bs: %d is out of range", n["bs"]))
	}
	in, out := p.in, p.out
	if v["if"] != "" {
		f, err := os.Open(p.path(v["if"]))
		if err != nil {
			return p.fail(err)
		}
		defer f.Close()
		in = f
	}
	if v["of"] != "" {
		how := os.O_WRONLY | os.O_CREATE
		if !strings.Contains(v["conv"], "notrunc") && n["seek"] == 0 {
			how |= os.O_TRUNC
		}
		f, err := os.OpenFile(p.path(v["of"]), how, 0o666)
		if err != nil {
			return p.fail(err)
		}
		defer f.Close()
		if _, err := f.Seek(n["seek"]*n["bs"], io.SeekStart); n["seek"] > 0 && err != nil {
			return p.fail(err)
		}
		out = f
	}
	begin := time.Now()
	if _, err := io.CopyN(io.Discard, in, n["skip"]*n["bs"]); err != nil && !errors.Is(err, io.EOF) {
		return p.fail(err)
	}
	buf := make([]byte, n["bs"])
	var full, part, total int64
	for i := int64(0); (n["count"] < 0 || i < n["count"]) && p.ctx.Err() == nil; i++ {
		m, err := io.ReadFull(in, buf)
		if m > 0 {
			if _, werr := out.Write(buf[:m]); werr != nil {
				return p.fail(werr)
			}
			total += int64(m)
			if m == len(buf) {
				full++
			} else {
				part++
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return p.fail(err)
			}
			break
		}
	}
	if v["status"] != "none" {
		fmt.Fprintf(p.err, "%d+%d records in\n%d+%d records out\n%d bytes copied, %s s\n", full, part, full, part, total,
			strconv.FormatFloat(time.Since(begin).Seconds(), 'f', 3, 64))
	}
	return 0
}

func mktemp(p *proc) int {
	f, err := p.flags("dqutp:", map[string]byte{"directory": 'd', "dry-run": 'u', "tmpdir": 'p', "quiet": 'q'})
	if err != nil {
		return p.fail(err)
	}
	dir := p.getenv("TMPDIR")
	if v := f.vals['p']; v != "" {
		dir = v
	}
	if dir == "" {
		dir = "/tmp"
	}
	template := filepath.Join(dir, "tmp.XXXXXXXXXX")
	if len(f.args) > 0 {
		if template = f.args[0]; (f.on['p'] || f.on['t']) && !filepath.IsAbs(template) {
			template = filepath.Join(dir, template)
		}
	}
	stem := strings.TrimRight(template, "X")
	n := len(template) - len(stem)
	if n < 3 {
		return p.fail(fmt.Errorf("too few X's in template %q", template))
	}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	for range 100 {
		b := make([]byte, n)
		for i := range b {
			b[i] = letters[rand.IntN(len(letters))]
		}
		name := stem + string(b)
		switch {
		case f.on['u']:
			_, err = os.Lstat(p.path(name))
			if err == nil {
				err = fs.ErrExist
			} else if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		case f.on['d']:
			err = os.Mkdir(p.path(name), 0o700)
		default:
			var file *os.File
			if file, err = os.OpenFile(p.path(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
				err = file.Close()
			}
		}
		if err == nil {
			fmt.Fprintln(p.out, name)
			return 0
		}
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	return p.fail(err)
}
