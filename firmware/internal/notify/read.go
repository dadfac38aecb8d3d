package notify

import (
	"context"
	"errors"
	"io"
	"os"
	"time"
)

// readSize bounds one read, and with it a batch. The kernel gives a pipe's bytes in pages.
const readSize = 4096

// drainBytes bounds what is read from one source at the end: a writer may never stop.
const drainBytes = 1 << 20

// lookEvery is how often a silent or busy source looks after itself.
const lookEvery = 10 * time.Second

// drainWait is for how long a source must be silent at the end to count as empty.
const drainWait = 20 * time.Millisecond

// source is a pipe or a connection.
type source interface {
	io.Reader
	SetReadDeadline(time.Time) error
}

// readLines turns what src gives into batches until ctx is done, src ends, or look, which is called every lookEvery
// with the time of the last byte, returns an error. hand outlives ctx for what is left.
func (n *Notifier) readLines(ctx, hand context.Context, src source, look func(last time.Time) error) (err error) {
	woken := make(chan struct{})
	unwake := context.AfterFunc(ctx, func() {
		_ = src.SetReadDeadline(time.Unix(1, 0)) // ends a Read that waits
		close(woken)
	})
	defer unwake()
	var lines Lines
	buf := make([]byte, readSize)
	last, looked := time.Now(), time.Now()
	defer func() { n.hand(hand, &lines, nil, true) }()
	for ctx.Err() == nil {
		deadline := looked.Add(n.lookEvery)
		if flush := last.Add(IdleFlush); lines.Partial() && flush.Before(deadline) {
			deadline = flush
		}
		_ = src.SetReadDeadline(deadline)
		if ctx.Err() != nil {
			break // its deadline was overwritten
		}
		k, err := src.Read(buf)
		now := time.Now()
		if k > 0 {
			last = now
			n.hand(hand, &lines, buf[:k], false)
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			if now.Sub(last) >= IdleFlush {
				n.hand(hand, &lines, nil, true)
			}
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
		if now.Sub(looked) >= n.lookEvery {
			looked = now
			if err := look(last); err != nil {
				return err
			}
		}
	}
	<-woken // or it might set its deadline after ours
	for got := 0; got < drainBytes && hand.Err() == nil; {
		_ = src.SetReadDeadline(time.Now().Add(drainWait))
		k, err := src.Read(buf)
		n.hand(hand, &lines, buf[:k], false)
		if got += k; err != nil {
			break
		}
	}
	return nil
}

// hand gives what chunk ends, and with flush what was left, to the collector; it waits as long as that is busy.
func (n *Notifier) hand(ctx context.Context, lines *Lines, chunk []byte, flush bool) {
	b := batch{time: time.Now()}
	cut, repaired := lines.Cut, lines.Repaired
	emit := func(line []byte) { b.data = append(b.data, line) }
	lines.Add(chunk, emit)
	if flush {
		lines.Flush(emit)
	}
	if d := lines.Repaired - repaired; d > 0 && n.repaired.Add(d) == d {
		n.log.Warn("a line was not UTF-8 and was repaired; further ones are counted only")
	}
	if d := lines.Cut - cut; d > 0 && n.cut.Add(d) == d {
		n.log.Warn("a line was too long and was cut off; further ones are counted only", "limit", MaxLine)
	}
	if len(b.data) == 0 {
		return
	}
	select {
	case n.queue <- b:
	case <-ctx.Done():
		if k := uint64(len(b.data)); n.shed.Add(k) == k {
			n.log.Error("notifications are given up, the journal does not take them in time")
		}
	}
}
