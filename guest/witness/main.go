// Command witness is what `sirocco bench migrate` puts into the sandboxes that it
// moves: it serves HTTP, and whoever asks it learns whether it is still the same
// process, with the memory that it had.
//
// Usage: witness [-mb N] PORT. It holds N MiB that are no zeros and changes some of
// them all the time.
//
//	POST /next[?wait=300ms]  counts the request, after a while: "<nonce> <count>"
//	GET  /check              checks all of the memory: "<nonce> <count> <changes>"
//
// Either fails with 500 when memory is not what it was.
package main

import (
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

const (
	// changeEvery is how often changePages pages are written anew: 1.3 MB/s.
	changeEvery = 50 * time.Millisecond
	changePages = 16
	// samplePages are checked with each request.
	samplePages = 16
	// headerTimeout bounds a request's headers.
	headerTimeout = time.Minute
)

func main() {
	mb := flag.Int("mb", 0, "`MiB` to hold")
	flag.Parse()
	if flag.NArg() != 1 {
		fail(errors.New("usage: witness [-mb N] PORT"))
	}
	held, err := hold(*mb << 20)
	if err != nil {
		fail(err)
	}
	w := &witness{nonce: rand.Text(), held: held}
	go w.work()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /next", w.next)
	mux.HandleFunc("GET /check", w.check)
	server := &http.Server{Addr: ":" + flag.Arg(0), Handler: mux, ReadHeaderTimeout: headerTimeout}
	fail(server.ListenAndServe())
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "witness:", err)
	os.Exit(1)
}

// witness answers. nonce is that of this process; count is how many requests it has
// counted.
type witness struct {
	nonce string
	held  *held
	count atomic.Int64
}

// work changes memory until the process ends.
func (w *witness) work() {
	for range time.Tick(changeEvery) {
		w.held.change(changePages)
	}
}

func (w *witness) next(rw http.ResponseWriter, r *http.Request) {
	if s := r.FormValue("wait"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		time.Sleep(d)
	}
	if page := w.held.wrong(samplePages); page >= 0 {
		http.Error(rw, fmt.Sprintf("page %d is not what it was", page), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(rw, "%s %d\n", w.nonce, w.count.Add(1))
}

func (w *witness) check(rw http.ResponseWriter, _ *http.Request) {
	if page := w.held.wrong(-1); page >= 0 {
		http.Error(rw, fmt.Sprintf("page %d is not what it was", page), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(rw, "%s %d %d\n", w.nonce, w.count.Load(), w.held.changes())
}
