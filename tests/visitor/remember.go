package main

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// remember serves what only the process knows that was asked before.
func remember(mux *http.ServeMux) {
	nonce := rand.Text()
	var mu sync.Mutex
	var count int
	var kept []byte
	// POST /count counts, and says which process does.
	mux.HandleFunc("POST /count", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		count++
		fmt.Fprintf(w, "%s %d", nonce, count)
	})
	// POST /keep?mb=16 keeps noise; GET /kept is its checksum.
	mux.HandleFunc("POST /keep", func(w http.ResponseWriter, r *http.Request) {
		mb, _ := strconv.Atoi(r.URL.Query().Get("mb"))
		mu.Lock()
		defer mu.Unlock()
		kept = make([]byte, mb<<20)
		_, _ = rand.Read(kept)
		fmt.Fprintf(w, "%x", sha256.Sum256(kept))
	})
	mux.HandleFunc("GET /kept", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(w, "%x", sha256.Sum256(kept))
	})
	// GET /hold?for=3s takes that long to answer.
	mux.HandleFunc("GET /hold", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.URL.Query().Get("for"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		time.Sleep(d)
		fmt.Fprint(w, "held")
	})
}
