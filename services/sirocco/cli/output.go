package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

func writeJSON(w io.Writer, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", raw)
	return err
}

func (a *app) printJSON(v any) error { return writeJSON(a.Out, v) }

// jsonOf is a message as JSON with the names of the contract. protojson varies
// its white space on purpose; encoding/json makes it the same again.
func jsonOf(m proto.Message) (json.RawMessage, error) {
	return protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
}

// printMessage prints one message.
func (a *app) printMessage(m proto.Message) error {
	raw, err := jsonOf(m)
	if err != nil {
		return err
	}
	return a.printJSON(raw)
}

// printLine prints one message on one line, for streams.
func (a *app) printLine(m proto.Message) error {
	raw, err := jsonOf(m)
	if err != nil {
		return err
	}
	line, err := json.Marshal(raw) // compacts
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.Out, "%s\n", line)
	return err
}

// printMessages prints a list as a JSON array.
func printMessages[M proto.Message](a *app, list []M) error {
	all := make([]json.RawMessage, 0, len(list))
	for _, m := range list {
		raw, err := jsonOf(m)
		if err != nil {
			return err
		}
		all = append(all, raw)
	}
	return a.printJSON(all)
}

// printTable prints rows under a heading; only the heading when there is none.
func (a *app) printTable(heading []string, rows [][]string) error {
	w := tabwriter.NewWriter(a.Out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(heading, "\t"))
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// pairsOf writes a map as "a=1,b=2".
func pairsOf(m map[string]string) string {
	var pairs []string
	for k, v := range m {
		pairs = append(pairs, k+"="+v)
	}
	slices.Sort(pairs)
	return dash(strings.Join(pairs, ","))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// age writes a time span as people do: 5s, 3m, 2h, 4d.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// size writes bytes with a power of 1024.
func size(n int64) string {
	v, unit := float64(n), ""
	for _, u := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, u
	}
	text := strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
	return text + unit
}
