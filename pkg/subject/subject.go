// Package subject holds every name on the bus: subjects, streams, consumers,
// buckets and headers. Each subject is built by one function and parsed by its
// inverse, so that a name is spelled once.
//
//	sirocco.api.<tenant>.<noun>.<verb>             ask; core request/reply, answered by the api
//	sirocco.cmd.<tenant>.sandbox.<verb>.<key>      command; stream SIROCCO_CMD
//	sirocco.evt.<tenant>.sandbox.<id>              event; stream SIROCCO_EVT
//	sirocco.evt.<tenant>.command.<key>             event: a command was refused
//	sirocco.node.<node>.<verb>                     ask a node; core request/reply
//	sirocco.traffic.<region>.<verb>                ask the schedulers of a region; core request/reply
//	sirocco.dlq.<stream>.<consumer>.<tenant>.<key> dead letter; stream SIROCCO_DLQ
package subject

import (
	"fmt"
	"regexp"
	"strings"
)

// Streams and their consumers.
const (
	StreamCommands    = "SIROCCO_CMD"
	StreamEvents      = "SIROCCO_EVT"
	StreamDeadLetters = "SIROCCO_DLQ"

	// ConsumerScheduler is the one work-queue consumer that all schedulers of
	// a region share.
	ConsumerScheduler = "scheduler"
)

// Buckets.
const (
	BucketSandboxes   = "sirocco-sandboxes"   // <tenant>.<id>: the record
	BucketIdempotency = "sirocco-idempotency" // <tenant>.<key>: id and fingerprint, for 24 h
	BucketNames       = "sirocco-names"       // <tenant>.<name>: id
	BucketPorts       = "sirocco-ports"       // <region>.<port>: tenant and id
	BucketNodes       = "sirocco-nodes"       // <region>.<node>: what a living node says of itself
	BucketNodeOrders  = "sirocco-node-orders" // <region>.<node>: what operators want of it
	BucketPools       = "sirocco-pools"       // <region>.<name>: a declared warm pool
	BucketQuotas      = "sirocco-quotas"      // <region>.<tenant>: what a tenant may have
	BucketRegions     = "sirocco-regions"     // report.<region>, weights.<region>, word.<region>
	BucketEvacuations = "sirocco-evacuations" // region.<region>, node.<region>.<node>: what is to be emptied, and how far it is
	BucketFaults      = "sirocco-faults"      // <region>.<node> or <region>.=: faults that were asked for
	BucketKeys        = "sirocco-keys"        // <hash of the API key>: whom it opens
	BucketImages      = "sirocco-images"      // imported images, as objects
	BucketLeases      = "sirocco-leases"      // <what>: who alone does it now
	BucketGuards      = "sirocco-guards"      // <tenant>.<id>: who keeps a checkpoint of another region's sandbox
	BucketFences      = "sirocco-fences"      // <region>.<node>: a node of another region whose sandboxes are guarded here, while it lives
	BucketCloudflare  = "sirocco-cloudflare"  // KeyCloudflare: what it shall hold and holds
)

// StreamOf returns the stream that a bucket is kept in.
func StreamOf(bucket string) string { return "KV_" + bucket }

// LeaseEvacuations is the lease in BucketLeases of who drives a region's evacuations.
const LeaseEvacuations = "evacuations"

// KeyCloudflare is the one key of BucketCloudflare, and the lease in BucketLeases
// of who writes to Cloudflare.
const KeyCloudflare = "cloudflare"

// Headers.
const (
	// HeaderContentType says how a body is encoded. Without it, a body that
	// starts with "{" is JSON.
	HeaderContentType = "Content-Type"
	// HeaderEvent is the state that a record has entered, or "updated" when
	// only other fields changed, or "rejected" for a refused command.
	HeaderEvent = "Sirocco-Event"
	// HeaderFact is a short JSON object about an event, for eyes and for
	// clients that do not decode protobuf.
	HeaderFact = "Sirocco-Fact"
	// HeaderOverQuota is set on a tenant's create command by the gateway, never
	// by the tenant, when the tenant may have no more: an ErrorDetail in JSON, with
	// which the schedulers refuse it.
	HeaderOverQuota = "Sirocco-Over-Quota"
	// HeaderSandbox is set on a create command by a service, never by a tenant:
	// the id of the sandbox that it makes. Its key, name and ports have been
	// claimed and its request has been checked and completed.
	HeaderSandbox = "Sirocco-Sandbox"
	// HeaderStored is set by a scheduler on a command that it sends after its sandbox to
	// another region: when it was first stored, in RFC 3339.
	HeaderStored = "Sirocco-Stored"
	// HeaderForwarded is set on an ask that the api of a region passes on to another
	// region: the name of its own. It is not passed on again.
	HeaderForwarded = "Sirocco-Forwarded"
	// HeaderErrorCode is the error code of an error answer (see package fault).
	HeaderErrorCode = "Nats-Service-Error-Code"
	// HeaderError is the text of an error answer.
	HeaderError = "Nats-Service-Error"
)

// Content types.
const (
	ContentJSON     = "application/json"
	ContentProtobuf = "application/protobuf"
)

const root = "sirocco"

// Nouns that can be asked for.
const (
	NounSandbox = "sandbox"
	NounTunnel  = "tunnel"
	NounNode    = "node"
	NounImage   = "image"
	NounPool    = "pool"
	NounQuota   = "quota"
	NounRegion  = "region"
)

// Verbs on a sandbox. Those that change something are commands too.
const (
	VerbCreate      = "create"
	VerbGet         = "get"
	VerbList        = "list"
	VerbTerminate   = "terminate"
	VerbExtend      = "extend"
	VerbSetTags     = "set-tags"
	VerbCreateToken = "create-token"
	VerbOpenTunnel  = "open-tunnel"
	VerbCloseTunnel = "close-tunnel"
	VerbMigrate     = "migrate"
)

// Verbs that a node answers.
const (
	NodePlace     = "place"
	NodeSync      = "sync"
	NodeStop      = "stop"
	NodeInventory = "inventory"
	NodeReceive   = "receive"
)

// Verbs that the schedulers of a region answer to those of others.
const TrafficReserve = "reserve"

var token = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// ValidToken says whether s can be one token of a subject here: 1 to 64
// characters of [A-Za-z0-9_-]. Tenants, regions, nodes and keys must be tokens.
func ValidToken(s string) bool { return token.MatchString(s) }

// API builds the subject on which the api answers an ask.
func API(tenant, noun, verb string) string { return join(root, "api", tenant, noun, verb) }

// ParseAPI is the inverse of API.
func ParseAPI(s string) (tenant, noun, verb string, err error) {
	p, err := split(s, "api", 5)
	if err != nil {
		return "", "", "", err
	}
	return p[2], p[3], p[4], nil
}

// Command builds the subject of a command on a sandbox.
func Command(tenant, verb, key string) string {
	return join(root, "cmd", tenant, NounSandbox, verb, key)
}

// ParseCommand is the inverse of Command.
func ParseCommand(s string) (tenant, verb, key string, err error) {
	p, err := split(s, "cmd", 6)
	if err != nil {
		return "", "", "", err
	}
	if p[3] != NounSandbox {
		return "", "", "", fmt.Errorf("subject %q: want %q, not %q", s, NounSandbox, p[3])
	}
	return p[2], p[4], p[5], nil
}

// Tenant returns the token of a subject at which a tenant is named, whatever else
// is wrong with it; "" if there is none.
func Tenant(s string) string {
	p := strings.SplitN(s, ".", 4)
	if len(p) < 4 || !ValidToken(p[2]) {
		return ""
	}
	return p[2]
}

// Event builds the subject of the events of one sandbox.
func Event(tenant, id string) string { return join(root, "evt", tenant, NounSandbox, id) }

// TenantEvents is the filter for all events of a tenant.
func TenantEvents(tenant string) string { return join(root, "evt", tenant, ">") }

// EventCommand is the noun of events about refused commands.
const EventCommand = "command"

// CommandEvent builds the subject of the event about a refused command.
func CommandEvent(tenant, key string) string { return join(root, "evt", tenant, EventCommand, key) }

// ParseEvent returns the tenant, the noun (NounSandbox or EventCommand) and the
// id or key of an event.
func ParseEvent(s string) (tenant, noun, id string, err error) {
	p, err := split(s, "evt", 5)
	if err != nil {
		return "", "", "", err
	}
	if p[3] != NounSandbox && p[3] != EventCommand {
		return "", "", "", fmt.Errorf("subject %q: unknown noun %q", s, p[3])
	}
	return p[2], p[3], p[4], nil
}

// Node builds the subject on which a node answers.
func Node(node, verb string) string { return join(root, "node", node, verb) }

// ParseNode is the inverse of Node.
func ParseNode(s string) (node, verb string, err error) {
	p, err := split(s, "node", 4)
	if err != nil {
		return "", "", err
	}
	return p[2], p[3], nil
}

// Traffic builds the subject on which the schedulers of a region answer those of
// others.
func Traffic(region, verb string) string { return join(root, "traffic", region, verb) }

// ParseTraffic is the inverse of Traffic.
func ParseTraffic(s string) (region, verb string, err error) {
	p, err := split(s, "traffic", 4)
	if err != nil {
		return "", "", err
	}
	return p[2], p[3], nil
}

// DeadLetter builds the subject of a dead letter.
func DeadLetter(stream, consumer, tenant, key string) string {
	return join(root, "dlq", stream, consumer, tenant, key)
}

// ParseDeadLetter is the inverse of DeadLetter.
func ParseDeadLetter(s string) (stream, consumer, tenant, key string, err error) {
	p, err := split(s, "dlq", 6)
	if err != nil {
		return "", "", "", "", err
	}
	return p[2], p[3], p[4], p[5], nil
}

// RecordKey is the key of a record in BucketSandboxes.
func RecordKey(tenant, id string) string { return tenant + "." + id }

// ParseRecordKey is the inverse of RecordKey.
func ParseRecordKey(key string) (tenant, id string, err error) { return pair(key) }

// NodeKey is the key of a node in BucketNodes and BucketNodeOrders.
func NodeKey(region, node string) string { return region + "." + node }

// ParseNodeKey is the inverse of NodeKey.
func ParseNodeKey(key string) (region, node string, err error) { return pair(key) }

// PoolKey is the key of a declared pool in BucketPools.
func PoolKey(region, name string) string { return region + "." + name }

// ParsePoolKey is the inverse of PoolKey.
func ParsePoolKey(key string) (region, name string, err error) { return pair(key) }

// PoolKeys matches the keys of all declared pools of a region.
func PoolKeys(region string) string { return region + ".*" }

// QuotaKey is the key of a tenant's own limits in BucketQuotas.
func QuotaKey(region, tenant string) string { return region + "." + tenant }

// ParseQuotaKey is the inverse of QuotaKey.
func ParseQuotaKey(key string) (region, tenant string, err error) { return pair(key) }

// What there is about a region in BucketRegions.
const (
	RegionReport  = "report"  // what it says of itself
	RegionWeights = "weights" // how it sees all of them
	RegionWord    = "word"    // what a person said about it
)

// RegionKey is a key in BucketRegions; kind is RegionReport, RegionWeights or
// RegionWord.
func RegionKey(kind, region string) string { return kind + "." + region }

// ParseRegionKey is the inverse of RegionKey.
func ParseRegionKey(key string) (kind, region string, err error) {
	kind, region, err = pair(key)
	if err == nil && kind != RegionReport && kind != RegionWeights && kind != RegionWord {
		err = fmt.Errorf("key %q: unknown kind %q", key, kind)
	}
	return kind, region, err
}

// EvacuationKey is a key in BucketEvacuations; node "" means the whole region.
func EvacuationKey(region, node string) string {
	if node == "" {
		return join("region", region)
	}
	return join("node", region, node)
}

// ParseEvacuationKey is the inverse of EvacuationKey.
func ParseEvacuationKey(key string) (region, node string, err error) {
	kind, rest, _ := strings.Cut(key, ".")
	switch {
	case kind == "region" && ValidToken(rest):
		return rest, "", nil
	case kind == "node":
		return pair(rest)
	}
	return "", "", fmt.Errorf("key %q: want region.<region> or node.<region>.<node>", key)
}

// everyNode stands for all nodes of a region in BucketFaults. It is no token, and so no
// node's name.
const everyNode = "="

// FaultKey is a key in BucketFaults; node "" means all of the region.
func FaultKey(region, node string) string {
	if node == "" {
		node = everyNode
	}
	return region + "." + node
}

// BusFaultKey is the key in BucketFaults of what is asked of a region's bus itself.
func BusFaultKey(region string) string { return region + "." + everyNode + "bus" }

// PortKey is the key of a public TCP port in BucketPorts.
func PortKey(region string, port uint16) string { return fmt.Sprintf("%s.%d", region, port) }

// PortKeys matches the keys of all public TCP ports of a region.
func PortKeys(region string) string { return region + ".*" }

// All is the filter below a root kind: everything of "api", "cmd", "evt", "dlq".
func All(kind string) string { return join(root, kind, ">") }

func pair(key string) (string, string, error) {
	a, b, ok := strings.Cut(key, ".")
	if !ok || !ValidToken(a) || !ValidToken(b) {
		return "", "", fmt.Errorf("key %q: want two tokens", key)
	}
	return a, b, nil
}

func join(parts ...string) string { return strings.Join(parts, ".") }

func split(s, kind string, n int) ([]string, error) {
	p := strings.Split(s, ".")
	if len(p) != n || p[0] != root || p[1] != kind {
		return nil, fmt.Errorf("subject %q: want %s.%s.… with %d tokens", s, root, kind, n)
	}
	for _, t := range p[2:] {
		if !ValidToken(t) {
			return nil, fmt.Errorf("subject %q: bad token %q", s, t)
		}
	}
	return p, nil
}
