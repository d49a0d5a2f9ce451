package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
)

const pageBytes = 4096

// held is memory whose content is known: each page follows from its number and from
// how often it was changed. Half of it is noise, so that it can be compressed as memory
// usually can.
type held struct {
	mu       sync.Mutex
	memory   []byte
	versions []uint32
	total    int64
}

// hold takes so many bytes, in whole pages, and fills them.
func hold(n int) (*held, error) {
	h := &held{versions: make([]uint32, n/pageBytes)}
	if n < pageBytes {
		return h, nil
	}
	var err error
	if h.memory, err = syscall.Mmap(-1, 0, n/pageBytes*pageBytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE); err != nil {
		return nil, fmt.Errorf("take %d bytes: %w", n, err)
	}
	for i := range h.versions {
		fill(h.page(i), i, 0)
	}
	return h, nil
}

func (h *held) page(i int) []byte { return h.memory[i*pageBytes : (i+1)*pageBytes] }

// word is the w-th of a page's words.
func word(page int, version uint32, w int) uint64 {
	if w >= pageBytes/8/2 {
		return 0x6f63636f72697320 // no zeros
	}
	z := (uint64(page)<<32|uint64(version))*0x9e3779b97f4a7c15 + uint64(w)*0xbf58476d1ce4e5b9
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func fill(b []byte, page int, version uint32) {
	for w := range len(b) / 8 {
		binary.LittleEndian.PutUint64(b[8*w:], word(page, version, w))
	}
}

func right(b []byte, page int, version uint32) bool {
	for w := range len(b) / 8 {
		if binary.LittleEndian.Uint64(b[8*w:]) != word(page, version, w) {
			return false
		}
	}
	return true
}

// change writes n pages anew.
func (h *held) change(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.versions) == 0 {
		return
	}
	for range n {
		i := rand.IntN(len(h.versions))
		h.versions[i]++
		fill(h.page(i), i, h.versions[i])
		h.total++
	}
}

// wrong returns a page that is not what it was, of n that chance chooses or of all if n
// is negative; -1 for none.
func (h *held) wrong(n int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.versions) == 0 {
		return -1
	}
	if n < 0 {
		for i, version := range h.versions {
			if !right(h.page(i), i, version) {
				return i
			}
		}
		return -1
	}
	for range n {
		if i := rand.IntN(len(h.versions)); !right(h.page(i), i, h.versions[i]) {
			return i
		}
	}
	return -1
}

// changes is how many pages were written anew so far.
func (h *held) changes() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.total
}
