package cloudflaretest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"
)

// check says what is wrong with a value of JSON.
type check func(raw json.RawMessage) error

// fields are those that an object may have. One whose name begins with "!" must
// be there.
type fields map[string]check

// check holds an object to its fields: known, of their kind, in their range, none
// twice and none missing.
func (f fields) check(raw []byte) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("%s is not an object", raw)
	}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		name, _ := t.(string)
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return err
		}
		one, ok := f[name]
		if !ok {
			one, ok = f["!"+name]
		}
		switch {
		case !ok:
			return fmt.Errorf("unknown field %q", name)
		case seen[name]:
			return fmt.Errorf("%q comes twice", name)
		}
		if err := one(value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		seen[name] = true
	}
	if len(seen) == 0 {
		return errors.New("nothing is asked for")
	}
	for name := range f {
		if name[0] == '!' && !seen[name[1:]] {
			return fmt.Errorf("%q is missing", name[1:])
		}
	}
	return nil
}

func object(f fields) check { return func(raw json.RawMessage) error { return f.check(raw) } }

func list(most int, one check) check {
	return func(raw json.RawMessage) error {
		var items []json.RawMessage
		if err := json.Unmarshal(raw, &items); err != nil || items == nil {
			return fmt.Errorf("%s is not a list", raw)
		}
		if len(items) > most {
			return fmt.Errorf("%d items: at most %d", len(items), most)
		}
		for i, item := range items {
			if err := one(item); err != nil {
				return fmt.Errorf("item %d: %w", i, err)
			}
		}
		return nil
	}
}

// number within a range and of a multiple of step; 0 for any.
func number(low, high, step float64) check {
	return func(raw json.RawMessage) error {
		var n *float64
		if err := json.Unmarshal(raw, &n); err != nil || n == nil {
			return fmt.Errorf("%s is not a number", raw)
		}
		if *n < low || *n > high {
			return fmt.Errorf("%v is not within %v and %v", *n, low, high)
		}
		if steps := *n / step; step > 0 && math.Abs(steps-math.Round(steps)) > 1e-9 {
			return fmt.Errorf("%v is not a multiple of %v", *n, step)
		}
		return nil
	}
}

// weights of pools, in steps of 0.01.
func weights(raw json.RawMessage) error {
	var of map[string]json.RawMessage
	if err := json.Unmarshal(raw, &of); err != nil || of == nil {
		return fmt.Errorf("%s is not an object", raw)
	}
	for pool, w := range of {
		if err := identifier(json.RawMessage(`"` + pool + `"`)); err != nil {
			return err
		}
		if err := number(0, 1, 0.01)(w); err != nil {
			return fmt.Errorf("%s: %w", pool, err)
		}
	}
	return nil
}

func boolean(raw json.RawMessage) error {
	if s := string(raw); s != "true" && s != "false" {
		return fmt.Errorf("%s is not a boolean", raw)
	}
	return nil
}

func text(most int) check {
	return func(raw json.RawMessage) error {
		var s *string
		if err := json.Unmarshal(raw, &s); err != nil || s == nil {
			return fmt.Errorf("%s is not a string", raw)
		}
		if n := utf8.RuneCountInString(*s); n == 0 || n > most {
			return fmt.Errorf("%d characters: want 1 to %d", n, most)
		}
		return nil
	}
}

func oneOf(values ...string) check {
	return func(raw json.RawMessage) error {
		var s string
		if err := json.Unmarshal(raw, &s); err != nil || !slices.Contains(values, s) {
			return fmt.Errorf("%s is none of %q", raw, values)
		}
		return nil
	}
}

func identifier(raw json.RawMessage) error {
	if err := text(32)(raw); err != nil {
		return fmt.Errorf("not an identifier: %w", err)
	}
	return nil
}
