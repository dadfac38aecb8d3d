//go:build !no_handler

package origin

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
)

// hasLocal is false with the build tag no_handler, for programs that never set
// Config.Handler, as cloudrestd is: the server below is net/http's, 90 KB on MIPS when
// nothing else needs it.
const hasLocal = true

// local serves an origin in this process. It speaks HTTP/1.1 through memory instead of
// calling the handler directly: so the handler finds the ResponseWriter it knows, with
// every optional interface, and one path of code serves all origins.
type local struct {
	server *http.Server
	conns  chan net.Conn
	closed chan struct{}
	start  sync.Once
	stop   sync.Once
	done   chan struct{}
}

func newLocal(h http.Handler, l *slog.Logger) *local {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	serve := func(w http.ResponseWriter, r *http.Request) {
		if who := r.Header.Get("X-Forwarded-For"); who != "" {
			r.RemoteAddr = net.JoinHostPort(who, "0")
		}
		// Else the server would swallow the rest of the body at the first byte of an answer.
		_ = http.NewResponseController(w).EnableFullDuplex()
		h.ServeHTTP(w, r)
	}
	return &local{
		server: &http.Server{
			Handler:                      http.HandlerFunc(serve),
			DisableGeneralOptionsHandler: true,
			ErrorLog:                     slog.NewLogLogger(l.Handler(), slog.LevelError),
		},
		conns:  make(chan net.Conn),
		closed: make(chan struct{}),
		done:   make(chan struct{}),
	}
}

func (l *local) dial(ctx context.Context) (net.Conn, error) {
	l.start.Do(func() {
		go func() {
			defer close(l.done)
			_ = l.server.Serve(l) // ends with close
		}()
	})
	ours, theirs := pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-l.closed:
		return nil, ErrClosed
	}
}

func (l *local) close() {
	l.start.Do(func() { close(l.done) })
	_ = l.server.Close()
	_ = l.Close()
	<-l.done
}

// Accept is for the server.
func (l *local) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, io.EOF
	}
}

// Close is for the server, too.
func (l *local) Close() error {
	l.stop.Do(func() { close(l.closed) })
	return nil
}

// Addr names the in-memory listener.
func (l *local) Addr() net.Addr { return memoryAddr{} }
