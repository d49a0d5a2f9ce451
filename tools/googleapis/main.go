// Command googleapis writes the .proto sources of the Google API annotations
// that Sirocco's own .proto files import, printed from the descriptors that the
// Go module google.golang.org/genproto carries. So the sources are pinned by
// go.sum, nothing is copied into this repository and no schema registry is
// needed.
//
// Usage: googleapis <output folder>
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: googleapis <output folder>")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "googleapis:", err)
		os.Exit(1)
	}
}

func run(out string) error {
	files := []protoreflect.FileDescriptor{
		annotations.File_google_api_http_proto,
		annotations.File_google_api_annotations_proto,
		httpbody.File_google_api_httpbody_proto,
	}
	var printer protoprint.Printer
	for _, file := range files {
		text, err := printer.PrintProtoToString(file)
		if err != nil {
			return fmt.Errorf("print %s: %w", file.Path(), err)
		}
		path := filepath.Join(out, file.Path())
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
