package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// afterAnswer is how long a client may go on once the app has ended its side
// of an upgraded connection: enough for a closing handshake.
const afterAnswer = time.Minute

// upgradeOf returns the protocol that a request wants to change to, "" for
// none. An upgrade to another version of HTTP is none: it would carry requests
// past the relay's eyes.
func upgradeOf(req *http.Request) string {
	if req.ProtoMajor != 1 || req.ContentLength != 0 || !httpguts.HeaderValuesContainsToken(req.Header["Connection"], "Upgrade") {
		return ""
	}
	up := req.Header.Get("Upgrade")
	lower := strings.ToLower(up)
	if !httpguts.ValidHeaderFieldValue(up) || strings.HasPrefix(lower, "h2") || strings.HasPrefix(lower, "http") || strings.HasPrefix(lower, "tls") {
		return ""
	}
	return up
}

// serveUpgrade asks the app to change protocols (WebSocket), and if it does,
// joins the two connections. It is apart from the proxy so that an idle
// WebSocket costs two small buffers and nothing else.
func (r *Relay) serveUpgrade(w http.ResponseWriter, req *http.Request, x *exchange, up string) {
	ctx := req.Context()
	ask, f := r.askAgain(ctx, req, x, up)
	if f != nil {
		if ctx.Err() == nil {
			r.refuse(w, req, x, f)
		}
		return
	}
	app, answer, resp, stop := ask.app, ask.answer, ask.resp, ask.stop
	defer stop()
	handed := false
	defer func() {
		if !handed {
			_ = app.Close()
		}
	}()
	resp.Header.Del(HeaderError)
	r.meters.answered(ctx, kindUpgrade, resp.StatusCode)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		declineUpgrade(w, resp)
		return
	}
	if !strings.EqualFold(resp.Header.Get("Upgrade"), up) {
		r.refuse(w, req, x, appBroke(x.want.port, fmt.Errorf("asked for %q, changed to %q", up, resp.Header.Get("Upgrade"))))
		return
	}
	raw, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		r.refuse(w, req, x, appBroke(x.want.port, err))
		return
	}
	if !stop() { // the client has just gone
		_ = raw.Close()
		return
	}
	client, ok := raw.(halfConn)
	if !ok {
		_ = raw.Close() // cannot be: the listener makes *tls.Conn
		return
	}
	var head strings.Builder
	head.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = resp.Header.Write(&head) // a Builder takes everything
	head.WriteString("\r\n")
	if _, err := io.WriteString(client, head.String()); err != nil {
		_ = client.Close()
		return
	}
	handed = true
	early, err := drainBuffer(buffered.Reader)
	late, err2 := drainBuffer(answer)
	if err = errors.Join(err, err2); err != nil {
		_ = client.Close()
		_ = app.Close()
		return
	}
	// From here on the handler's goroutine and the server's buffers are not
	// needed; the relay owns the joint.
	from := io.Reader(app)
	if strings.EqualFold(up, "websocket") {
		socket := &socketReader{in: app}
		socket.frames.pass(late)
		from = socket
	}
	joined := r.clients.run(func() {
		if _, err := app.Write(early); err != nil {
			_ = app.Close()
		}
		if _, err := client.Write(late); err != nil {
			_ = app.Close()
		}
		early, late = nil, nil
		splice(client, app, from, afterAnswer)
	})
	if !joined {
		_ = client.Close()
		_ = app.Close()
	}
}

// asked is an app that has answered a request to change protocols.
type asked struct {
	app    *routeConn
	answer *bufio.Reader
	resp   *http.Response
	// stop lets the stream outlive the client's request; false if it was too late.
	stop func() bool
}

// askAgain asks the app, and where the sandbox goes before it has answered, asks it
// again at the newer place: the request has no body and is a GET.
func (r *Relay) askAgain(ctx context.Context, req *http.Request, x *exchange, up string) (asked, *refusal) {
	for tried := (attempts{}); ; {
		app, err := r.router.open(ctx, x.target, useUpgrade, x.client, x.trace)
		if err == nil {
			var a asked
			if a, err = r.ask(ctx, app, req, x, up); err == nil {
				return a, nil
			}
			cause := r.router.fate(x.target, app, false, err)
			if cause == nil || ctx.Err() != nil {
				return a, appBroke(x.want.port, err)
			}
			err = cause
			r.meters.resent(ctx, kindUpgrade)
		}
		var f *refusal
		if x.target, f = r.router.next(ctx, x.want, x.target, err, &tried); f != nil {
			return asked{}, f
		}
		x.resent = true
	}
}

// ask asks once. It closes the stream when there is no answer.
func (r *Relay) ask(ctx context.Context, app *routeConn, req *http.Request, x *exchange, up string) (asked, error) {
	stop := context.AfterFunc(ctx, func() { _ = app.Close() })
	if !x.resent {
		r.meters.passedOn(ctx, max(time.Since(x.begun)-x.held, 0))
	}
	answer := bufio.NewReader(app)
	resp, err := askUpgrade(app, answer, upgradeRequest(req, x, up)) //nolint:bodyclose // its body is the connection
	if err != nil {
		stop()
		_ = app.Close()
	}
	return asked{app, answer, resp, stop}, err
}

// upgradeRequest is what the app gets to see.
func upgradeRequest(in *http.Request, x *exchange, up string) *http.Request {
	out := in.Clone(in.Context())
	for _, line := range out.Header["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			out.Header.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"} {
		out.Header.Del(name)
	}
	out.Header.Set("Connection", "Upgrade")
	out.Header.Set("Upgrade", up)
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header.Set("User-Agent", "") // none, instead of Go's
	}
	setForwarded(out.Header, in)
	if x.strip != nil {
		x.strip(out.Header)
	}
	out.Body = nil
	return out
}

// askUpgrade sends the request and reads the head of the answer.
func askUpgrade(app io.Writer, answer *bufio.Reader, out *http.Request) (*http.Response, error) {
	if err := out.Write(app); err != nil {
		return nil, err
	}
	for {
		resp, err := http.ReadResponse(answer, out)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, nil
		}
	}
}

// declineUpgrade passes on the answer of an app that did not change protocols.
func declineUpgrade(w http.ResponseWriter, resp *http.Response) {
	defer func() { _ = resp.Body.Close() }()
	h := w.Header()
	for name, values := range resp.Header {
		switch name {
		case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
			continue
		}
		h[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	controller := http.NewResponseController(w)
	buf := bulk.Get().(*[]byte) //nolint:errcheck // the pool holds nothing else
	defer bulk.Put(buf)
	for {
		n, err := resp.Body.Read(*buf)
		if n > 0 {
			if _, werr := w.Write((*buf)[:n]); werr != nil {
				return
			}
			_ = controller.Flush()
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler) // the client must see that it is cut off
		}
	}
}

// drainBuffer returns what a reader has read ahead.
func drainBuffer(r *bufio.Reader) ([]byte, error) {
	ahead := make([]byte, r.Buffered())
	_, err := io.ReadFull(r, ahead)
	return ahead, err
}
