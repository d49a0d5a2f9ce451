package control

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"strconv"
	"testing"

	"github.com/sirocco-run/sirocco/pkg/fault"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// codes returns the constants of the type Code in a file, by name.
func codes(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 {
			return true
		}
		kind, named := spec.Type.(*ast.Ident)
		value, literal := spec.Values[0].(*ast.BasicLit)
		if !named || kind.Name != "Code" || !literal {
			return true
		}
		text, err := strconv.Unquote(value.Value)
		if err != nil {
			t.Fatalf("%s: %s: %v", path, spec.Names[0].Name, err)
		}
		found[spec.Names[0].Name] = text
		return true
	})
	return found
}

// The Go client has a list of codes of its own, so that it needs nothing of the
// platform; it is the platform's.
func TestTheClientKnowsEveryCode(t *testing.T) {
	ours, theirs := codes(t, "../../pkg/fault/fault.go"), codes(t, "../../sdk/go/error.go")
	if ours["Deadline"] != string(fault.Deadline) || theirs["Deadline"] != string(sirocco.Deadline) {
		t.Fatalf("the codes were not found: %v, %v", ours, theirs)
	}
	if !maps.Equal(ours, theirs) {
		t.Errorf("package fault has %v, the client %v", ours, theirs)
	}
	for name, code := range ours {
		if fault.Code(code).HTTPStatus() == 0 {
			t.Errorf("%s has no HTTP status", name)
		}
	}
}
