package main

import (
	"bufio"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strings"
)

// hasher is a command that prints or checks the hashes of files.
func hasher(make func() hash.Hash) command {
	return func(p *proc) int {
		f, err := p.flags("cbtqs", map[string]byte{"check": 'c', "quiet": 'q', "status": 's'})
		if err != nil {
			return p.fail(err)
		}
		sum := func(r io.Reader) (string, error) {
			h := make()
			_, err := io.Copy(h, r)
			return hex.EncodeToString(h.Sum(nil)), err
		}
		if !f.on['c'] {
			return p.each(f.args, func(name string, r io.Reader) error {
				s, err := sum(r)
				if err == nil {
					fmt.Fprintf(p.out, "%s  %s\n", s, name)
				}
				return err
			})
		}
		bad := 0
		status := p.each(f.args, func(_ string, list io.Reader) error {
			return lines(list, func(b []byte) bool {
				want, name, ok := strings.Cut(string(b), " ")
				if !ok {
					return true
				}
				name = strings.TrimLeft(name, " *")
				result := "FAILED"
				if r, err := p.open(name); err == nil {
					if got, err := sum(r); err == nil && strings.EqualFold(got, want) {
						result = "OK"
					}
					_ = r.Close()
				}
				if result != "OK" {
					bad++
				}
				if !f.on['s'] && (result != "OK" || !f.on['q']) {
					fmt.Fprintf(p.out, "%s: %s\n", name, result)
				}
				return true
			})
		})
		if bad > 0 {
			return 1
		}
		return status
	}
}

var (
	md5sum    = hasher(md5.New)
	sha1sum   = hasher(sha1.New)
	sha256sum = hasher(sha256.New)
	sha512sum = hasher(sha512.New)
)

// hexdump prints bytes in hex: as od and hexdump -C do, with the characters.
func hexdump(p *proc) int {
	f, err := p.flags("Cvn:A:t:", nil)
	if err != nil {
		return p.fail(err)
	}
	limit, err := f.number('n', 1<<62)
	if err != nil {
		return p.fail(err)
	}
	return p.buffered(func(w *bufio.Writer) int {
		return p.each(f.args, func(_ string, r io.Reader) error {
			d := hex.Dumper(w)
			_, err := io.Copy(d, io.LimitReader(r, limit))
			_ = d.Close()
			return err
		})
	})
}
