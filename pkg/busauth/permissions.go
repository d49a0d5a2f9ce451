package busauth

import (
	"strings"

	"github.com/nats-io/jwt/v2"
	"github.com/sirocco-run/sirocco/pkg/bus"
	"github.com/sirocco-run/sirocco/pkg/subject"
)

// plainInbox is where clients have their answers sent that know of no inbox
// prefix. Only the anonymous tenant may have it: it can't be shared.
const plainInbox = "_INBOX"

// tenant is who a connection belongs to.
type tenant struct {
	name      string
	operator  bool
	anonymous bool
}

// permissions are what a tenant's connection may do, in the account of the
// tenants. Everything else is refused by the server.
func (t tenant) permissions() jwt.Permissions {
	var p jwt.Permissions
	p.Pub.Allow.Add(subject.Command(t.name, "*", "*"))
	if t.operator {
		p.Pub.Allow.Add(subject.API(t.name, "*", "*"))
	} else {
		p.Pub.Allow.Add(
			subject.API(t.name, subject.NounSandbox, "*"),
			subject.API(t.name, subject.NounTunnel, "*"),
			subject.API(t.name, subject.NounImage, "list"),
			subject.API(t.name, subject.NounRegion, "list"),
		)
		// Where a sandbox runs is the operators' business.
		p.Pub.Deny.Add(subject.API(t.name, subject.NounSandbox, subject.VerbMigrate), subject.Command(t.name, subject.VerbMigrate, "*"))
	}
	p.Sub.Allow.Add(subject.TenantEvents(t.name), bus.TenantInbox(t.name)+".>")
	if t.anonymous {
		p.Sub.Allow.Add(plainInbox + ".>")
	}
	return p
}

// OwnInbox says whether a reply subject is an inbox that only the tenant can
// read. anonymous is the tenant that has the inboxes without a prefix.
func OwnInbox(tenant, reply, anonymous string) bool {
	prefix, rest, ok := strings.Cut(reply, ".")
	if !ok || rest == "" || strings.ContainsAny(rest, "*> \t\r\n") {
		return false
	}
	return prefix == bus.TenantInbox(tenant) || prefix == plainInbox && tenant == anonymous
}
