// Package program is what every service's main is made of: flags and
// environment, logging, telemetry, signals, the connection to the bus.
package program

import (
	"log/slog"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/sirocco-run/sirocco/pkg/peer"
	"github.com/sirocco-run/sirocco/pkg/pki"
	"github.com/sirocco-run/sirocco/pkg/tunnel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// Env is what every service is given, by its main or by `sirocco up`.
type Env struct {
	// Region is the name of the region, Instance that of this one service
	// process, such as a node's name; both are tokens of a subject.
	Region, Instance string
	NC               *nats.Conn
	JS               jetstream.JetStream
	// Peers are the other regions; nil for none.
	Peers *peer.Set
	// Keys is the folder of certificates and keys.
	Keys *pki.Folder
	// Front is where the region's relay can be reached.
	Front  tunnel.Front
	Log    *slog.Logger
	Tracer trace.TracerProvider
	Meter  metric.MeterProvider
}
