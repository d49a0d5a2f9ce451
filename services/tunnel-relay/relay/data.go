package relay

import (
	"net/http"
	"time"

	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/token"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
)

// serveData passes a request to the data services (exec, files, logs) on to the
// agent that runs the token's sandbox. The agent checks the token again.
func (r *Relay) serveData(w http.ResponseWriter, req *http.Request, x *exchange) {
	x.kind = kindData
	ctx := otel.GetTextMapPropagator().Extract(req.Context(), propagation.HeaderCarrier(req.Header))
	ctx, span, trace := r.startSpan(ctx, "relay.data")
	defer span.End()
	x.trace = trace
	text := bearer(req.Header)
	if text == "" {
		r.refuseData(w, req, fault.New(fault.Unauthenticated, `send the sandbox's token as "Authorization: Bearer <token>"`))
		return
	}
	claims, err := token.Check(r.tokenKey, text, time.Now())
	if err != nil {
		r.refuseData(w, req, fault.From(err))
		return
	}
	x.want = want{id: claims.Sandbox, tenant: claims.Tenant, port: dataPort}
	if claims.Sandbox == "" || claims.Tenant == "" {
		r.refuseData(w, req, fault.New(fault.Unauthenticated, "the token names no sandbox"))
		return
	}
	if !r.resolve(ctx, w, req, x) {
		return
	}
	r.forward(ctx, w, req, x)
}

func (r *Relay) refuseData(w http.ResponseWriter, req *http.Request, f *fault.Fault) {
	r.refused(req.Context(), kindData, "", &refusal{reason: ReasonUnauthorized, status: http.StatusUnauthorized, code: f.Code, cause: f})
	writeFault(w, req, ReasonUnauthorized, f)
}
