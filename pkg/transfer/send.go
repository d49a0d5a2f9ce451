package transfer

import (
	"context"
	"errors"
	"sync"
	"time"
)

// depth is how many parts each side holds at most.
const depth = 4

// Sent says what was sent.
type Sent struct {
	Files int
	// Bytes is the size of all files, Content what of them is not zeros, and Wire what
	// went over the stream for them.
	Bytes, Content, Wire int64
	// Compressed is how much of Content went in compressed form, Known how much the target
	// had already.
	Compressed, Known int64
}

// Files sends every file of a folder, which holds nothing else, and waits until the
// target has them all, whole. If it fails here, the target is told.
func (s *Source) Files(ctx context.Context, dir string) (Sent, error) {
	return s.FilesWhile(ctx, dir, "", func() error { return nil })
}

// FilesWhile is Files while save makes the files. The one called growing, if there is
// one, is sent while it grows: save may only append to it. The others are sent once save
// has returned. If save fails, the target is told, and its error is returned as it is.
// FilesWhile does not return before save has.
func (s *Source) FilesWhile(ctx context.Context, dir, growing string, save func() error) (Sent, error) {
	b := &batch{dir: dir, growing: growing, saved: make(chan struct{}), beat: s.wire.stall / 4}
	go func() {
		defer close(b.saved)
		b.failed = save()
	}()
	sent, err := s.files(ctx, b)
	<-b.saved
	if b.failed != nil {
		return sent, b.failed
	}
	return sent, err
}

// files sends a batch, and tells the target if that fails.
func (s *Source) files(ctx context.Context, b *batch) (Sent, error) {
	sent, err := s.filesOnce(ctx, b)
	if err != nil && !isGaveUp(err) {
		_ = s.wire.giveUp(err)
	}
	return sent, step("send the files", err)
}

func (s *Source) filesOnce(ctx context.Context, b *batch) (Sent, error) {
	// What the target says is heard while it is still sent to: it may have no room.
	hearing, hush := context.WithCancelCause(ctx)
	sending, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	beat, answer := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		err := s.received(hearing, beat)
		if err != nil {
			cancel(err)
		}
		answer <- err
	}()
	sent, err := s.send(sending, b)
	defer hush(nil)
	wait := s.wire.stall
	if err != nil {
		wait = farewell
		if !errors.Is(err, ErrGone) {
			hush(err)
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case said := <-answer:
			if err == nil || isGaveUp(said) {
				err = said
			}
			return sent, err
		case <-beat:
			if err == nil {
				timer.Reset(wait)
			}
		case <-timer.C:
			hush(blame(ErrStalled, "the other node made no progress with the files that it was sent"))
		}
	}
}

// received waits until the target has every file. Each beat is a sign that it gets on.
func (s *Source) received(ctx context.Context, beat chan<- struct{}) error {
	for {
		kind, body, err := s.wire.next(ctx, 0, fresh)
		if err != nil {
			return err
		}
		switch kind {
		case frameProgress:
			select {
			case beat <- struct{}{}:
			default:
			}
		case frameMessage:
			m, err := unpack(body)
			if err == nil && m.GetReceived() == nil {
				err = s.wire.reject("received")
			}
			return err
		default:
			return s.wire.reject("received")
		}
	}
}

// parcelled is one frame on its way from the goroutine that makes it to the one that
// writes it.
type parcelled struct {
	frame []byte
	done  func() // nil for nothing to do
	// Of a part only:
	content    int // bytes, before compressing
	compressed bool
	// idle is how long there was nothing to make a part of.
	idle time.Duration
}

func (f parcelled) over() {
	if f.done != nil {
		f.done()
	}
}

// send makes and writes the frames of all files.
func (s *Source) send(ctx context.Context, b *batch) (sent Sent, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &packer{frames: make(chan parcelled, depth), free: make(chan struct{}, depth), base: s.base, plain: s.plain}
	// What fails here does not interrupt a write: the target can only be told between
	// two frames.
	var made error
	var making sync.WaitGroup
	making.Go(func() {
		defer close(p.frames)
		made = p.batch(ctx, b)
	})
	defer func() {
		cancel(err)
		making.Wait()
		for f := range p.frames {
			f.over()
		}
		p.close()
		sent.Files, sent.Bytes, sent.Known = p.files, p.bytes, p.known
		sent.Content += p.known
	}()
	for {
		from := time.Now()
		f, more := <-p.frames
		if !more {
			return sent, made
		}
		begin := time.Now()
		err := s.wire.write(ctx, f.frame)
		if f.content > 0 && err == nil {
			p.wrote(len(f.frame), f.compressed, begin.Sub(from)-f.idle, time.Since(begin))
			sent.Content += int64(f.content)
			if f.compressed {
				sent.Compressed += int64(f.content)
			}
		}
		sent.Wire += int64(len(f.frame))
		f.over()
		if err != nil {
			return sent, err
		}
	}
}
