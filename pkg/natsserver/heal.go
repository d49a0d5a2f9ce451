package natsserver

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const (
	// roomEvery is how often a disk that could not be written is tried again.
	roomEvery = time.Second
	// room is how much must fit then, in bytes. With less it would be full again before
	// the streams are read.
	room = 4 << 20
)

// heal starts the server again after the disk could not be written and can be now,
// until ctx ends. After the first write of a stream that fails, the server takes
// nothing more for it, for good, because it does not know what is on the disk: only
// one that reads it from there does.
func (s *Server) heal(ctx context.Context) {
	cfg := s.cfg
	if u, err := url.Parse(s.URL()); err == nil {
		if port, err := strconv.Atoi(u.Port()); err == nil {
			cfg.Port = port // where clients look for it, if any free one was asked for
		}
	}
	for {
		select {
		case <-s.log.unwritable:
		case <-ctx.Done():
			return
		}
		s.cfg.Log.Error("the bus can't write to its disk: nothing new is taken until it can", "folder", s.cfg.Dir)
		for {
			select {
			case <-time.After(roomEvery):
			case <-ctx.Done():
				return
			}
			if !writable(s.cfg.Dir) {
				continue
			}
			s.end()
			s.log.reset()
			err := s.start(ctx, cfg)
			if err == nil {
				s.cfg.Log.Info("the bus can write to its disk again", "folder", s.cfg.Dir)
				break
			}
			s.cfg.Log.Error("the bus can't be started again; it is tried again", "err", err)
		}
	}
}

// writable says whether there is room in a folder.
func writable(dir string) bool {
	probe := filepath.Join(dir, ".probe")
	defer func() { _ = os.Remove(probe) }()
	f, err := os.OpenFile(probe, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return false
	}
	_, err = f.Write(make([]byte, room))
	if err == nil {
		err = f.Sync()
	}
	return f.Close() == nil && err == nil
}
