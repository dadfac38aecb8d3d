//go:build !no_http2

package http1

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
)

// HasHTTP2 says whether a Server speaks HTTP/2 too: not when built with the tag no_http2.
const HasHTTP2 = true

// http2Server is net/http's: it gets connections whose handshake is done.
type http2Server struct {
	http  http.Server
	conns *handover
}

func startHTTP2(s *Server, addr net.Addr) *http2Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	h := &http2Server{conns: newHandover(addr), http: http.Server{
		Handler: s.Handler, Protocols: protocols, HTTP2: &s.HTTP2, MaxHeaderBytes: s.maxHead(),
		ReadHeaderTimeout: s.headTimeout(), IdleTimeout: s.idleTimeout(),
		ErrorLog: slog.NewLogLogger(s.log().Handler(), slog.LevelDebug),
	}}
	s.running.Go(func() { h.http.Serve(h.conns) })
	return h
}

func (h *http2Server) give(c net.Conn) { h.conns.give(c) }

func (h *http2Server) shutdown(ctx context.Context) error {
	h.conns.Close()
	err := h.http.Shutdown(ctx)
	if err != nil {
		h.http.Close()
	}
	return err
}

func (h *http2Server) close() {
	h.conns.Close()
	h.http.Close()
}

// handover is a listener whose connections were accepted elsewhere.
type handover struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newHandover(addr net.Addr) *handover {
	return &handover{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// give waits for the server's accept loop, which is always about to accept.
func (h *handover) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		c.Close()
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, io.EOF
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handover) Addr() net.Addr { return h.addr }
