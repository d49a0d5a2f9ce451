//go:build race

package relay

// raceDetector: memory costs more than it does in a program.
const raceDetector = true
