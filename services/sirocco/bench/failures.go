package bench

import (
	"errors"
	"maps"
	"sync"

	"github.com/sirocco-run/sirocco/pkg/fault"
	sirocco "github.com/sirocco-run/sirocco/sdk/go"
)

// Failures counts what went wrong, by error code. The zero value is ready; its
// methods may be called concurrently.
type Failures struct {
	mu      sync.Mutex
	byCode  map[string]int
	count   int
	example string
}

// Add counts an error; nil is none. It says whether there was one.
func (f *Failures) Add(err error) bool {
	if err == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byCode == nil {
		f.byCode, f.example = map[string]int{}, err.Error()
	}
	code := string(sirocco.CodeOf(err))
	if onBus := new(fault.Fault); errors.As(err, &onBus) {
		code = string(onBus.Code)
	}
	f.byCode[code]++
	f.count++
	return true
}

// Count returns how many there were so far.
func (f *Failures) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

// ByCode returns how many there were of each code, and the text of the first
// one; nil and "" for none.
func (f *Failures) ByCode() (counts map[string]int, example string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.byCode), f.example
}
