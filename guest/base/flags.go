package main

import (
	"fmt"
	"strconv"
	"strings"
)

// flagSet is what the options of a command line say.
type flagSet struct {
	on   map[byte]bool
	vals map[byte]string
	args []string
}

// flags reads options as POSIX has them: spec lists the letters, those with a
// value followed by a colon. long maps long names to letters. Options may stand
// among the arguments, up to "--".
func (p *proc) flags(spec string, long map[string]byte) (flagSet, error) {
	f := flagSet{on: map[byte]bool{}, vals: map[byte]string{}}
	takes := func(c byte) (known, value bool) {
		i := strings.IndexByte(spec, c)
		return i >= 0 && c != ':', i >= 0 && i+1 < len(spec) && spec[i+1] == ':'
	}
	args := p.args
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--":
			f.args = append(f.args, args...)
			return f, nil
		case strings.HasPrefix(a, "--"):
			name, val, has := strings.Cut(a[2:], "=")
			c, ok := long[name]
			if !ok {
				return f, fmt.Errorf("unknown option %q", a)
			}
			f.on[c] = true
			if _, value := takes(c); value {
				if !has {
					if len(args) == 0 {
						return f, fmt.Errorf("option %q needs a value", a)
					}
					val, args = args[0], args[1:]
				}
				f.vals[c] = val
			}
		case len(a) > 1 && a[0] == '-':
			for i := 1; i < len(a); i++ {
				known, value := takes(a[i])
				if !known {
					return f, fmt.Errorf("unknown option -%c", a[i])
				}
				f.on[a[i]] = true
				if !value {
					continue
				}
				val := a[i+1:]
				if val == "" {
					if len(args) == 0 {
						return f, fmt.Errorf("option -%c needs a value", a[i])
					}
					val, args = args[0], args[1:]
				}
				f.vals[a[i]] = val
				break
			}
		default:
			f.args = append(f.args, a)
		}
	}
	return f, nil
}

// number returns the value of an option as a number, or def without it.
func (f flagSet) number(c byte, def int64) (int64, error) {
	v, ok := f.vals[c]
	if !ok {
		return def, nil
	}
	n, err := parseSize(v)
	if err != nil {
		return 0, fmt.Errorf("option -%c: %w", c, err)
	}
	return n, nil
}

// parseSize reads a number with a suffix like k, M or G perhaps.
func parseSize(v string) (int64, error) {
	num := strings.TrimRight(v, "bBkKMGTiw")
	shift := int64(1)
	switch strings.TrimSuffix(strings.TrimSuffix(v[len(num):], "B"), "i") {
	case "k", "K":
		shift = 1 << 10
	case "M":
		shift = 1 << 20
	case "G":
		shift = 1 << 30
	case "T":
		shift = 1 << 40
	case "b":
		shift = 512
	case "w":
		shift = 2
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", v)
	}
	return n * shift, nil
}
