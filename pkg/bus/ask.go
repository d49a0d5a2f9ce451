package bus

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/sirocco-run/sirocco/pkg/fault"
	"github.com/sirocco-run/sirocco/pkg/subject"
	siroccov1 "github.com/sirocco-run/sirocco/proto/gen/sirocco/v1"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/protobuf/proto"
)

// Inject writes the trace context of ctx into h.
func Inject(ctx context.Context, h nats.Header) {
	otel.GetTextMapPropagator().Inject(ctx, carrier(h))
}

// Extract returns ctx with the trace context from h.
func Extract(ctx context.Context, h nats.Header) context.Context {
	return otel.GetTextMapPropagator().Extract(ctx, carrier(h))
}

// carrier carries the trace context in the headers of a message. Unlike those
// of HTTP they keep their case, and clients write "traceparent" as they like.
type carrier nats.Header

var _ propagation.TextMapCarrier = carrier(nil)

// Get implements propagation.TextMapCarrier.
func (c carrier) Get(key string) string { return Header(nats.Header(c), key) }

// Set implements propagation.TextMapCarrier.
func (c carrier) Set(key, value string) { nats.Header(c).Set(key, value) }

// Keys implements propagation.TextMapCarrier.
func (c carrier) Keys() []string { return slices.Collect(maps.Keys(c)) }

// Header returns the first value of a header, whatever its case; "" if there
// is none.
func Header(h nats.Header, key string) string {
	if v := h.Get(key); v != "" {
		return v
	}
	for name, values := range h {
		if len(values) > 0 && strings.EqualFold(name, key) {
			return values[0]
		}
	}
	return ""
}

// NewMsg makes a protobuf message with the trace context of ctx.
func NewMsg(ctx context.Context, subj string, m proto.Message) (*nats.Msg, error) {
	body, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	msg := nats.NewMsg(subj)
	msg.Data = body
	msg.Header.Set(subject.HeaderContentType, subject.ContentProtobuf)
	Inject(ctx, msg.Header)
	return msg, nil
}

// Ask sends a request and decodes the answer into resp. Errors are faults:
// what the other side answered, Unavailable when nobody listens, Deadline when
// no answer came before ctx ended.
func Ask(ctx context.Context, nc *nats.Conn, subj string, req, resp proto.Message) error {
	msg, err := NewMsg(ctx, subj, req)
	if err != nil {
		return err
	}
	return AskMsg(ctx, nc, msg, resp)
}

// AskMsg is Ask for a request that has been made already, with headers of its own.
func AskMsg(ctx context.Context, nc *nats.Conn, msg *nats.Msg, resp proto.Message) error {
	answer, err := nc.RequestMsgWithContext(ctx, msg)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return &fault.Fault{Code: fault.Unavailable, Message: "nobody answers on " + msg.Subject, RetryAfter: time.Second, Cause: err}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return &fault.Fault{Code: fault.Deadline, Message: "no answer in time on " + msg.Subject, Cause: err}
	case err != nil:
		return &fault.Fault{Code: fault.Unavailable, Message: "the bus is away", Cause: err}
	}
	if answer.Header.Get(subject.HeaderErrorCode) != "" {
		detail := &siroccov1.ErrorDetail{}
		if err := Decode(answer.Header, answer.Data, detail); err != nil {
			return &fault.Fault{Code: fault.Internal, Message: "an error answer that can't be read", Cause: err}
		}
		return fault.FromDetail(detail)
	}
	return Decode(answer.Header, answer.Data, resp)
}

// Answer sends m, or err if it is not nil, as the answer to a request, in the
// encoding of the request. It may be called after the handler has returned:
// unlike micro's Error it writes nothing into the request.
func Answer(req micro.Request, m proto.Message, err error) error {
	asJSON := IsJSON(nats.Header(req.Headers()), req.Data())
	if err != nil {
		f := fault.From(err)
		body, contentType, eerr := Encode(f.Detail(), asJSON)
		if eerr != nil {
			return eerr
		}
		return req.Respond(body, micro.WithHeaders(micro.Headers{
			subject.HeaderContentType: {contentType}, subject.HeaderErrorCode: {string(f.Code)}, subject.HeaderError: {oneLine(f.Message)},
		}))
	}
	body, contentType, err := Encode(m, asJSON)
	if err != nil {
		return err
	}
	return req.Respond(body, micro.WithHeaders(micro.Headers{subject.HeaderContentType: {contentType}}))
}

// oneLine makes a text fit into a header.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\r' || r == '\n' {
			return ' '
		}
		return r
	}, s)
}
