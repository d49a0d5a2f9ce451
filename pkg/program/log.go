package program

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"go.opentelemetry.io/otel/trace"
)

// Keys of log attributes, the same in every service.
const (
	KeyService  = "service"
	KeyRegion   = "region"
	KeyInstance = "instance"
	KeyTraceID  = "trace_id"
	KeySpanID   = "span_id"
	KeyTenant   = "tenant"
	KeySandbox  = "sandbox"
	KeyEpoch    = "epoch"
	KeyNode     = "node"
	KeyState    = "state"
	KeyErrorID  = "error_id"
	KeyError    = "err"
)

// Formats of the log.
const (
	FormatJSON = "json"
	FormatText = "text"
)

// Logger returns the logger of a service, as the flags want it. Records carry
// the service, region and instance, and whatever their context carries: the
// trace and the attributes of WithLog.
func (s *Settings) Logger(w io.Writer, service string) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.LogLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q is not debug, info, warn or error", s.LogLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler
	switch s.LogFormat {
	case FormatJSON:
		h = slog.NewJSONHandler(w, opts)
	case FormatText:
		h = slog.NewTextHandler(w, opts)
	default:
		return nil, fmt.Errorf("--log-format %q is not json or text", s.LogFormat)
	}
	return slog.New(ContextHandler(h)).With(KeyService, service, KeyRegion, s.Region, KeyInstance, s.Instance), nil
}

type logKey struct{}

// WithLog returns ctx with attributes that every record logged with it
// carries, such as the sandbox that a request is about.
func WithLog(ctx context.Context, attrs ...slog.Attr) context.Context {
	have, _ := ctx.Value(logKey{}).([]slog.Attr)
	return context.WithValue(ctx, logKey{}, append(slices.Clip(have), attrs...))
}

// WithSandbox is WithLog for one sandbox.
func WithSandbox(ctx context.Context, tenant, id string) context.Context {
	return WithLog(ctx, slog.String(KeyTenant, tenant), slog.String(KeySandbox, id))
}

// ContextHandler adds the trace and the attributes of WithLog to each record.
func ContextHandler(h slog.Handler) slog.Handler { return contextHandler{h} }

type contextHandler struct{ slog.Handler }

// Handle implements slog.Handler.
func (h contextHandler) Handle(ctx context.Context, r slog.Record) error {
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		r.AddAttrs(slog.String(KeyTraceID, sc.TraceID().String()), slog.String(KeySpanID, sc.SpanID().String()))
	}
	if attrs, ok := ctx.Value(logKey{}).([]slog.Attr); ok {
		r.AddAttrs(attrs...)
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h contextHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return contextHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h contextHandler) WithGroup(name string) slog.Handler {
	return contextHandler{h.Handler.WithGroup(name)}
}
