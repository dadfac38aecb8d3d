// Package fetch does one HTTP/1.1 request over one new connection (RFC 9112). It exists
// for its size: http.Client and http.Transport bring proxies, pools, redirects, cookies and
// the client half of HTTP/2, on MIPS 390 KB (83 KB with xz), to a daemon that asks its own control
// socket and a factory's station. Requests to the maker's service are package origin's.
package fetch

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
)

// maxHead bounds the head of an answer, status line and fields, in bytes.
const maxHead = 16 << 10

// Do sends r, whose URL names the host, over a connection from dial, and reads the head of
// the answer. Interim answers are skipped, redirects are the caller's to follow. When the
// context of r ends, what waits on the connection fails. The caller closes the body, and
// with it the connection; r is sent with "Connection: close".
func Do(r *http.Request, dial func(context.Context) (net.Conn, error)) (*http.Response, error) {
	ctx := r.Context()
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	fail := func(what string, err error) (*http.Response, error) {
		stop()
		conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	r = r.Clone(ctx)
	r.Close = true
	if err := r.Write(conn); err != nil {
		return fail("send the request", err)
	}
	limit := &io.LimitedReader{R: conn, N: maxHead}
	in := bufio.NewReader(limit)
	for {
		resp, err := http.ReadResponse(in, r)
		if err != nil {
			if limit.N <= 0 {
				err = fmt.Errorf("the head is longer than %d bytes", maxHead)
			}
			return fail("read the answer", err)
		}
		if resp.StatusCode >= 100 && resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		limit.N = 1<<63 - 1 // the body is the caller's to bound
		resp.Body = &body{ReadCloser: resp.Body, conn: conn, stop: stop}
		return resp, nil
	}
}

// body ends its connection.
type body struct {
	io.ReadCloser
	conn net.Conn
	stop func() bool
}

// Close does not read on to the end of the body, which may never come: the connection is
// of no further use.
func (b *body) Close() error {
	b.stop()
	return b.conn.Close()
}
