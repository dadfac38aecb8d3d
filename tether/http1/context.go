package http1

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// reqCtx is the context of one request. It ends when the client goes away, or with the
// handler. Its parts are made only when somebody asks for them: most handlers never do.
type reqCtx struct {
	conn *conn

	mu    sync.Mutex
	done  chan struct{}  // guarded by mu, made by Done
	err   error          // guarded by mu
	after map[int]func() // guarded by mu
	next  int
}

var closedChan = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (x *reqCtx) Deadline() (time.Time, bool) { return time.Time{}, false }

func (x *reqCtx) Done() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.done == nil {
		if x.err != nil {
			x.done = closedChan
		} else {
			x.done = make(chan struct{})
		}
	}
	return x.done
}

func (x *reqCtx) Err() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

func (x *reqCtx) Value(key any) any {
	if key == http.LocalAddrContextKey {
		return x.conn.raw.LocalAddr()
	}
	return nil
}

// AfterFunc makes context.AfterFunc, and contexts derived from this one, work without a
// goroutine that waits.
func (x *reqCtx) AfterFunc(f func()) (stop func() bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		go f()
		return func() bool { return false }
	}
	if x.after == nil {
		x.after = map[int]func(){}
	}
	id := x.next
	x.next++
	x.after[id] = f
	return func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		_, pending := x.after[id]
		delete(x.after, id)
		return pending
	}
}

func (x *reqCtx) cancel(error) {
	x.mu.Lock()
	if x.err != nil {
		x.mu.Unlock()
		return
	}
	x.err = context.Canceled
	after := x.after
	x.after = nil
	if x.done != nil {
		close(x.done)
	}
	x.mu.Unlock()
	for _, f := range after {
		go f()
	}
}
