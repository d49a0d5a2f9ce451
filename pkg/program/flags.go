package program

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// EnvName is the environment variable of a flag: SIROCCO_NATS_URL for nats-url.
func EnvName(flag string) string {
	return "SIROCCO_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// OTLPEnv is the variable that OpenTelemetry itself defines for the endpoint;
// it is read after SIROCCO_OTLP_ENDPOINT.
const OTLPEnv = "OTEL_EXPORTER_OTLP_ENDPOINT"

// envNames are the variables of a flag, first wins. A flag that only prints
// something has none.
func envNames(flag string) []string {
	switch flag {
	case "help", "version":
		return nil
	case "otlp-endpoint":
		return []string{EnvName(flag), OTLPEnv}
	}
	return []string{EnvName(flag)}
}

// Parse reads args into fs, and then, for each flag that args left out, the
// environment. An empty variable counts as unset. The usage of every flag is
// completed with the names of its variables.
func Parse(fs *pflag.FlagSet, args []string, getenv func(string) string) error {
	Document(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	return FromEnv(fs, getenv)
}

// FromEnv sets each flag of fs that has not been set from its environment
// variable. The error names the variable.
func FromEnv(fs *pflag.FlagSet, getenv func(string) string) error {
	var first error
	fs.VisitAll(func(f *pflag.Flag) {
		if first != nil || f.Changed {
			return
		}
		for _, name := range envNames(f.Name) {
			value := getenv(name)
			if value == "" {
				continue
			}
			if err := fs.Set(f.Name, value); err != nil {
				first = fmt.Errorf("the environment variable %s is not usable: %w", name, err)
			}
			return
		}
	})
	return first
}

// Document adds the environment variables of each flag to its usage. Calling
// it twice changes nothing.
func Document(fs *pflag.FlagSet) {
	fs.VisitAll(func(f *pflag.Flag) {
		names := envNames(f.Name)
		if len(names) == 0 {
			return
		}
		note := " [" + strings.Join(names, ", ") + "]"
		if !strings.HasSuffix(f.Usage, note) {
			f.Usage += note
		}
	})
}

// FlagNames returns the names of the flags of fs in order, for documentation
// and its test.
func FlagNames(fs *pflag.FlagSet) []string {
	var names []string
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	slices.Sort(names)
	return names
}
