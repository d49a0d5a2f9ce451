package relay

import (
	"fmt"
	"net/http"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/record"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
)

// HeaderError is set on every answer that comes from the relay instead of the
// app, with one of the reasons below. An app can't set it.
const HeaderError = "Sirocco-Error"

// The reasons why a request is not served.
const (
	ReasonNotATunnel      = "not_a_tunnel"       // 404: the host is no tunnel's
	ReasonNoSuchSandbox   = "no_such_sandbox"    // 404
	ReasonNotPublished    = "port_not_published" // 404
	ReasonMisdirected     = "misdirected"        // 421: the port speaks TLS itself, or raw TCP
	ReasonUnauthorized    = "unauthenticated"    // 401: the tunnel wants its bearer token
	ReasonEnded           = "ended"              // 410
	ReasonNothingListens  = "nothing_listens"    // 502
	ReasonAppBroke        = "app_broke"          // 502: the app closed the connection, or spoke no HTTP
	ReasonMoved           = "moved"              // 502: the sandbox was moved before it had answered
	ReasonStillStarting   = "still_starting"     // 503
	ReasonStillMoving     = "still_moving"       // 503
	ReasonNodeUnreachable = "node_unreachable"   // 503
	ReasonOverloaded      = "overloaded"         // 503: too many requests are held
	ReasonDraining        = "draining"           // 503: the relay is stopping
	ReasonBadRequest      = "bad_request"        // 400, 405
)

// refusal says why a request is not served.
type refusal struct {
	reason string
	status int
	title  string
	text   string
	code   fault.Code
	retry  time.Duration
	cause  error
	late   bool // what was waited for did not come in time
}

func (r *refusal) Error() string { return r.reason + ": " + r.text }
func (r *refusal) Unwrap() error { return r.cause }

// asFault is how the data services say it.
func (r *refusal) asFault() *fault.Fault {
	return &fault.Fault{Code: r.code, Message: r.text, RetryAfter: r.retry, Cause: r.cause}
}

func notATunnel(host, domain string) *refusal {
	return &refusal{reason: ReasonNotATunnel, status: http.StatusNotFound, code: fault.NotFound, title: "Not a tunnel",
		text: fmt.Sprintf("%q is not the address of a sandbox's port, which is <port>-<sandbox id>.%s.", clip(host), domain)}
}

func noSuchSandbox(id string) *refusal {
	return &refusal{reason: ReasonNoSuchSandbox, status: http.StatusNotFound, code: fault.NotFound, title: "No such sandbox",
		text: fmt.Sprintf("There is no sandbox %s.", id)}
}

func notPublished(id string, port uint16) *refusal {
	return &refusal{reason: ReasonNotPublished, status: http.StatusNotFound, code: fault.NotFound, title: "Port not published",
		text: fmt.Sprintf("Port %d of sandbox %s is not published.", port, id)}
}

func misdirected(id string, port uint16, p siroccov1.Protocol) *refusal {
	how := "raw TCP, on a public port of its own"
	if p == siroccov1.Protocol_PROTOCOL_TLS_PASSTHROUGH {
		how = "TLS passthrough: connect anew, with this host as the server name"
	}
	return &refusal{reason: ReasonMisdirected, status: http.StatusMisdirectedRequest, code: fault.FailedPrecondition, title: "Not an HTTPS tunnel",
		text: fmt.Sprintf("Port %d of sandbox %s is published as %s.", port, id, how)}
}

func unauthorized() *refusal {
	return &refusal{reason: ReasonUnauthorized, status: http.StatusUnauthorized, code: fault.Unauthenticated, title: "Token required",
		text: `This tunnel wants its token, as "Authorization: Bearer <token>", as the header Sirocco-Tunnel-Token or as the cookie sirocco-tunnel-token.`}
}

func ended(sb *siroccov1.Sandbox) *refusal {
	text := fmt.Sprintf("Sandbox %s has ended", sb.GetId())
	if sb.GetEnd() == nil {
		text = fmt.Sprintf("Sandbox %s is ending", sb.GetId())
		if cause := sb.GetDesired().GetStopCause(); cause != siroccov1.Cause_CAUSE_UNSPECIFIED {
			text += ": " + record.CauseName(cause)
		}
	} else {
		text += ": " + record.CauseName(sb.GetEnd().GetCause())
		if limit := sb.GetEnd().GetLimit(); limit != "" {
			text += " (" + limit + ")"
		}
		if sb.GetEnd().ExitCode != nil {
			text += fmt.Sprintf(", exit code %d", sb.GetEnd().GetExitCode())
		}
		if at := sb.GetEnd().GetAt(); at != nil {
			text += ", at " + at.AsTime().UTC().Format(time.RFC3339)
		}
	}
	return &refusal{reason: ReasonEnded, status: http.StatusGone, code: fault.FailedPrecondition, title: "Sandbox ended", text: text + "."}
}

func nothingListens(id string, port uint16) *refusal {
	return &refusal{reason: ReasonNothingListens, status: http.StatusBadGateway, code: fault.Unavailable, title: "Nothing listens", retry: time.Second,
		text: fmt.Sprintf("Sandbox %s runs, but nothing in it listens on port %d.", id, port)}
}

func stillStarting(sb *siroccov1.Sandbox, waited time.Duration) *refusal {
	if sb.GetState() == siroccov1.State_STATE_MIGRATING {
		return stillMoving(sb.GetId(), waited)
	}
	return &refusal{reason: ReasonStillStarting, status: http.StatusServiceUnavailable, code: fault.Unavailable, title: "Still starting", retry: 2 * time.Second, late: true,
		text: fmt.Sprintf("Sandbox %s is %s; it was waited for %v.", sb.GetId(), record.StateName(sb.GetState()), waited)}
}

func stillMoving(id string, waited time.Duration) *refusal {
	return &refusal{reason: ReasonStillMoving, status: http.StatusServiceUnavailable, code: fault.Unavailable, title: "Being moved", retry: 2 * time.Second, late: true,
		text: fmt.Sprintf("Sandbox %s is being moved; it was waited for %v.", id, waited.Round(time.Millisecond))}
}

// moved refuses a request that was cut off by a move and may not be sent twice.
func moved(id string, cause error) *refusal {
	return &refusal{reason: ReasonMoved, status: http.StatusBadGateway, code: fault.Unavailable, title: "The sandbox was moved", cause: cause,
		text: fmt.Sprintf("Sandbox %s was moved before it had answered. The request may have been carried out, so it was not sent again; with an Idempotency-Key it would have been.", id)}
}

// movedUnheard refuses a request of which too much has been read to send it again.
func movedUnheard(id string, cause error) *refusal {
	return &refusal{reason: ReasonMoved, status: http.StatusBadGateway, code: fault.Unavailable, title: "The sandbox was moved", retry: time.Second, cause: cause,
		text: fmt.Sprintf("Sandbox %s was moved while the request was being sent, which was not answered. More than %d KiB of its body are not kept to send it again.", id, maxKept>>10)}
}

// unheardOf refuses what is too new for the relay to say that there is none.
func unheardOf(id string) *refusal {
	return &refusal{reason: ReasonStillStarting, status: http.StatusServiceUnavailable, code: fault.Unavailable, title: "Not heard of yet", retry: time.Second,
		text: fmt.Sprintf("There is no sandbox %s that this relay has heard of, but it would be a new one.", id)}
}

func nodeUnreachable(id string, cause error) *refusal {
	return &refusal{reason: ReasonNodeUnreachable, status: http.StatusServiceUnavailable, code: fault.Unavailable, title: "Node unreachable", retry: 2 * time.Second, cause: cause,
		text: fmt.Sprintf("The node that runs sandbox %s can't be reached just now.", id)}
}

func appBroke(port uint16, cause error) *refusal {
	return &refusal{reason: ReasonAppBroke, status: http.StatusBadGateway, code: fault.Unavailable, title: "The app broke off", cause: cause,
		text: fmt.Sprintf("What listens on port %d closed the connection before it answered, or does not speak HTTP.", port)}
}

func overloaded() *refusal {
	return &refusal{reason: ReasonOverloaded, status: http.StatusServiceUnavailable, code: fault.Unavailable, title: "Too many requests wait", retry: time.Second,
		text: "Too many requests wait for sandboxes to start."}
}

func draining() *refusal {
	return &refusal{reason: ReasonDraining, status: http.StatusServiceUnavailable, code: fault.Unavailable, title: "The relay is stopping", retry: time.Second,
		text: "This relay is stopping; try again."}
}

func badRequest(status int, text string) *refusal {
	return &refusal{reason: ReasonBadRequest, status: status, code: fault.InvalidArgument, title: http.StatusText(status), text: text}
}

// clip bounds what of a client's input is shown.
func clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "…"
	}
	return s
}
