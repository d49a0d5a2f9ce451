package natsserver

import (
	"fmt"
	"log/slog"
	"strings"
)

// logger is the server's log. The server's own would end the process on a
// fatal fault; this one hands the first on to Start.
type logger struct {
	log   *slog.Logger
	fatal chan string
	// unwritable has a value after a write to the disk has failed (see heal).
	unwritable chan struct{}
}

func newLogger(log *slog.Logger) *logger {
	return &logger{log: log.With("service", "nats"), fatal: make(chan string, 1), unwritable: make(chan struct{}, 1)}
}

// reset forgets what a server said that has ended.
func (l *logger) reset() {
	select {
	case <-l.fatal:
	default:
	}
	select {
	case <-l.unwritable:
	default:
	}
}

// Noticef implements server.Logger. Most of it is a start-up banner.
func (l *logger) Noticef(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }

// Warnf implements server.Logger.
func (l *logger) Warnf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	if strings.HasPrefix(text, "Plaintext passwords detected") {
		// They are random and in no file of the server's.
		l.log.Debug(text)
		return
	}
	if strings.HasPrefix(text, "Filestore [") {
		// What it says while it recovers from a kill; what is lost is an error.
		l.log.Info(text)
		return
	}
	l.log.Warn(text)
}

// Errorf implements server.Logger.
func (l *logger) Errorf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.log.Error(text)
	// Said once for each stream; TestFullDisk fails should the words change.
	if strings.Contains(text, "ritical write error") {
		select {
		case l.unwritable <- struct{}{}:
		default:
		}
	}
}

// Debugf implements server.Logger.
func (l *logger) Debugf(format string, v ...any) { l.log.Debug(fmt.Sprintf(format, v...)) }

// Tracef implements server.Logger.
func (l *logger) Tracef(string, ...any) {}

// Fatalf implements server.Logger.
func (l *logger) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.log.Error(text)
	select {
	case l.fatal <- text:
	default:
	}
}
