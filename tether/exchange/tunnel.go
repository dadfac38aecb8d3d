package exchange

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
	"github.com/cloudrest/cloudrest/tether/mux"
)

// tunnel is a hijacked stream as a connection (101, RFC 9110 §7.8).
type tunnel struct {
	st     *mux.Stream
	req    *http.Request
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex // one writer at a time, as connections allow several
	headSent bool
	text     []byte // begin of an HTTP/1.1 head that the handler writes
}

func newTunnel(st *mux.Stream, req *http.Request) *tunnel {
	return &tunnel{st: st, req: req, closed: make(chan struct{})}
}

func (t *tunnel) Read(p []byte) (int, error) { return t.st.Read(p) }

var headEnd = []byte("\r\n\r\n")

// Write sends bytes; the first ones are an HTTP/1.1 response head as far as its empty line.
func (t *tunnel) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.headSent {
		return t.st.Write(p)
	}
	t.text = append(t.text, p...)
	end := bytes.Index(t.text, headEnd)
	if end < 0 {
		if len(t.text) > frame.MaxHead {
			return 0, errors.New("response head too long")
		}
		return len(p), nil
	}
	end += len(headEnd)
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(t.text[:end])), t.req)
	if err != nil {
		return 0, fmt.Errorf("parse the head written to a hijacked connection: %w", err)
	}
	if len(resp.TransferEncoding) > 0 {
		return 0, errors.New("transfer coding on a hijacked connection")
	}
	rest := t.text[end:]
	h, err := t.st.Encode(&frame.Response{Status: uint16(resp.StatusCode), Header: resp.Header})
	if err != nil {
		return 0, err
	}
	t.headSent, t.text = true, nil
	if err := t.st.Respond(h, rest, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite ends our direction; the other goes on.
func (t *tunnel) CloseWrite() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.headSent {
		return errors.New("no response head")
	}
	return t.st.End(nil)
}

// Close ends both directions: what was written still arrives.
func (t *tunnel) Close() error {
	t.once.Do(func() {
		code := frame.ResetCancel
		if t.mu.TryLock() { // else a Write waits, and the Reset ends that
			if err := t.st.End(nil); t.headSent && (err == nil || errors.Is(err, mux.ErrEnded)) {
				code = frame.ResetNone
			}
			t.mu.Unlock()
		}
		t.st.Reset(code)
		close(t.closed)
	})
	return nil
}

// wait holds the stream until the handler's side has closed it or it is gone.
func (t *tunnel) wait() {
	select {
	case <-t.closed:
	case <-t.req.Context().Done():
		// The peer is gone; reads and writes fail now. Whoever has the connection
		// still may close it, but need not.
	}
}

func (t *tunnel) SetDeadline(d time.Time) error {
	t.st.SetReadDeadline(d)
	t.st.SetWriteDeadline(d)
	return nil
}
func (t *tunnel) SetReadDeadline(d time.Time) error  { t.st.SetReadDeadline(d); return nil }
func (t *tunnel) SetWriteDeadline(d time.Time) error { t.st.SetWriteDeadline(d); return nil }
func (t *tunnel) LocalAddr() net.Addr                { return addr("tether") }
func (t *tunnel) RemoteAddr() net.Addr               { return addr(t.req.RemoteAddr) }

// addr is the client's address as the relay said.
type addr string

func (addr) Network() string  { return "tether" }
func (a addr) String() string { return string(a) }
