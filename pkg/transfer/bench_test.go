package transfer

import (
	"os"
	"testing"
)

// BenchmarkFiles is the time to send a checkpoint of 256 MiB, half of it zeros, from
// memory to memory, over streams of one connection.
func BenchmarkFiles(b *testing.B) {
	const size = 256 << 20
	for name, text := range map[string]float64{"noise": 0, "text": 0.5} {
		from := shm(b)
		if err := os.WriteFile(from+"/pages.img", content(1, size, 0.5, text), 0o600); err != nil {
			b.Fatal(err)
		}
		for _, way := range []string{"tls", "local"} {
			b.Run(name+"/"+way, func(b *testing.B) {
				sc, tc := streams(b, way == "local")
				s, g := NewSource(sc, Options{}), NewTarget(tc, Options{})
				b.SetBytes(size)
				for b.Loop() {
					b.StopTimer()
					dir := shm(b)
					b.StartTimer()
					done := make(chan error, 1)
					go func() { _, err := g.Files(b.Context(), dir); done <- err }()
					sent, err := s.Files(b.Context(), from)
					if terr := <-done; err != nil || terr != nil {
						b.Fatal(err, terr)
					}
					b.ReportMetric(float64(sent.Compressed)/float64(sent.Content), "compressed")
					b.StopTimer()
					_ = os.RemoveAll(dir)
					b.StartTimer()
				}
			})
		}
	}
}

// shm is a folder in memory, where checkpoints are.
func shm(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "transfer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
