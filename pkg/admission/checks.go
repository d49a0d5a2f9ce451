package admission

import (
	"fmt"
	"net/netip"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/runtime"
	"github.com/sirocco-run/sirocco/pkg/subject"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// CheckCommand checks an argument vector; an empty one passes.
func CheckCommand(field string, command []string) error {
	total := 0
	for i, arg := range command {
		total += len(arg)
		if bad := badText(arg); bad != "" {
			return fault.Invalid(fmt.Sprintf("%s[%d]", field, i), "%s", bad)
		}
	}
	if total > maxCommandBytes {
		return fault.Invalid(field, "it has %d bytes; at most %d are allowed", total, maxCommandBytes)
	}
	if len(command) > 0 && command[0] == "" {
		return fault.Invalid(field+"[0]", "the program is empty")
	}
	return nil
}

// CheckEnv checks environment variables.
func CheckEnv(field string, env map[string]string) error {
	total := 0
	if len(env) > maxEnvVars {
		return fault.Invalid(field, "it has %d variables; at most %d are allowed", len(env), maxEnvVars)
	}
	for name, value := range env {
		total += len(name) + len(value)
		if !envName.MatchString(name) {
			return fault.Invalid(field, "%q is not the name of a variable", clip(name))
		}
		if bad := badText(value); bad != "" {
			return fault.Invalid(field+"."+name, "%s", bad)
		}
	}
	if total > maxEnvBytes {
		return fault.Invalid(field, "it has %d bytes; at most %d are allowed: write a file instead", total, maxEnvBytes)
	}
	return nil
}

// CheckPath checks an absolute path inside a sandbox. Paths with ".." are
// refused, so that what is checked is what is meant.
func CheckPath(field, p string, emptyAllowed bool) error {
	if p == "" && emptyAllowed {
		return nil
	}
	if bad := badText(p); bad != "" {
		return fault.Invalid(field, "%s", bad)
	}
	if len(p) > maxPath {
		return fault.Invalid(field, "the path has %d bytes; at most %d are allowed", len(p), maxPath)
	}
	if !path.IsAbs(p) {
		return fault.Invalid(field, "%q is not an absolute path", clip(p))
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return fault.Invalid(field, "the path %q holds \"..\"", clip(p))
		}
	}
	return nil
}

// CheckUser checks a user; an empty one passes.
func CheckUser(field, u string) error {
	if u != "" && !user.MatchString(u) {
		return fault.Invalid(field, "%q is not a user: want a name, a uid or uid:gid", clip(u))
	}
	return nil
}

// CheckPort checks one port and fills in its defaults in place.
func CheckPort(field string, p *siroccov1.Port) error {
	if p.GetPort() == 0 || p.GetPort() > 65535 {
		return fault.Invalid(field+".port", "%d is out of range: 1 to 65535", p.GetPort())
	}
	if p.Port == runtime.GuestPort {
		return fault.Invalid(field+".port", "%d is used by the platform", p.Port)
	}
	switch p.Protocol {
	case siroccov1.Protocol_PROTOCOL_UNSPECIFIED:
		p.Protocol = siroccov1.Protocol_PROTOCOL_HTTPS
	case siroccov1.Protocol_PROTOCOL_HTTPS, siroccov1.Protocol_PROTOCOL_TCP, siroccov1.Protocol_PROTOCOL_TLS_PASSTHROUGH:
	default:
		return fault.Invalid(field+".protocol", "%d is not a protocol", p.Protocol)
	}
	if p.BearerToken != "" {
		if p.Protocol != siroccov1.Protocol_PROTOCOL_HTTPS {
			return fault.Invalid(field+".bearer_token", "only HTTPS ports can ask for a token")
		}
		if bad := badText(p.BearerToken); bad != "" || len(p.BearerToken) > 1024 {
			return fault.Invalid(field+".bearer_token", "want at most 1024 bytes of text")
		}
		if !inHeader(p.BearerToken) {
			return fault.Invalid(field+".bearer_token", "no header can carry it: want no control characters, and no space at either end")
		}
		p.BearerToken = tunnel.HashToken(p.BearerToken)
	}
	return nil
}

// inHeader says whether a header brings a text unchanged: space around it is
// lost on the way.
func inHeader(s string) bool {
	return strings.Trim(s, " \t") == s && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f })
}

// ParseRange reads an IPv4 range, or a single IPv4 address.
func ParseRange(s string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		addr, aerr := netip.ParseAddr(s)
		if aerr != nil {
			return prefix, err
		}
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	if !prefix.Addr().Is4() {
		return prefix, fmt.Errorf("%s is not IPv4", s)
	}
	return prefix, nil
}

// CheckTags checks tags.
func CheckTags(field string, tags map[string]string) error {
	if len(tags) > maxTags {
		return fault.Invalid(field, "there are %d; at most %d are allowed", len(tags), maxTags)
	}
	for k, v := range tags {
		if !tagKey.MatchString(k) {
			return fault.Invalid(field, "%q is not the key of a tag", clip(k))
		}
		if bad := badText(v); bad != "" || len(v) > 256 {
			return fault.Invalid(field+"."+k, "want at most 256 bytes of text")
		}
	}
	return nil
}

// CheckKey checks an idempotency key; an empty one passes.
func CheckKey(key string) error {
	if key != "" && !subject.ValidToken(key) {
		return fault.Invalid("idempotency_key", "want 1 to 64 of A-Z, a-z, 0-9, _ and -")
	}
	return nil
}

// CheckPublishedKey checks the idempotency key in the body of a command against
// the one in its subject; an empty one passes.
func CheckPublishedKey(inSubject, inBody string) error {
	if inBody != "" && inBody != inSubject {
		return fault.Invalid("idempotency_key", "the subject and the body name different keys")
	}
	return nil
}

// CheckExecID checks the id of an exec; an empty one passes.
func CheckExecID(field, id string) error {
	if id != "" && !subject.ValidToken(id) {
		return fault.Invalid(field, "want 1 to 64 of A-Z, a-z, 0-9, _ and -")
	}
	return nil
}

// badText says what is wrong with a text; "" for nothing.
func badText(s string) string {
	switch {
	case !utf8.ValidString(s):
		return "it is not valid UTF-8"
	case strings.ContainsRune(s, 0):
		return "it holds a zero byte"
	}
	return ""
}

// clip keeps an error short, whatever was sent.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return strings.ToValidUTF8(s, "�")
	}
	return strings.ToValidUTF8(s[:most], "�") + "…"
}
