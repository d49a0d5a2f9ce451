// Package bench measures the platform, through its public API and beside the
// floor: what bare gVisor costs on the same machine in the same run.
//
// A measurement is a function that returns a *Report: distributions of times
// (Samples, sample.go), single figures, failures, what must always hold
// (Verdict), and what can be drawn (plot.go). It says how far it is through a
// Progress (progress.go). What a report says and how it is printed and written
// is in report.go; arrivals that do not wait for answers are made by Pace.
package bench
