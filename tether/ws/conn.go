package ws

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// Sizes and waits.
const (
	// WriteTimeout bounds the writing of one message: a peer that takes nothing for so
	// long is dead (SPEC.md, keepalive).
	WriteTimeout = 20 * time.Second
	closeTimeout = time.Second // for the close frame, which may be lost

	readBuffer   = 512              // bytes that an idle connection keeps for reading
	writeBuffer  = 16<<10 + 512     // one DATA frame with its headers, taken while writing
	messageSize  = 16<<10 + 1<<10   // usual message buffer; larger messages get their own
	messageLimit = frame.MaxMessage // a larger message ends the connection with 1009
)

// Close codes (RFC 6455 §7.4.1).
const (
	CloseNormal      = websocket.CloseNormalClosure
	CloseGoingAway   = websocket.CloseGoingAway
	CloseProtocol    = websocket.CloseProtocolError
	CloseUnsupported = websocket.CloseUnsupportedData
	ClosePolicy      = websocket.ClosePolicyViolation
	CloseTryLater    = websocket.CloseTryAgainLater
)

// ErrText means that the peer sent a text message; the connection is closed with 1003.
var ErrText = errors.New("text message on a tether")

// writeBuffers lends gorilla its write buffer for the time of one message.
var writeBuffers sync.Pool

// messages holds buffers of messageSize for the time in which one message is processed.
var messages = sync.Pool{New: func() any { b := make([]byte, messageSize); return &b }}

// Conn is one WebSocket. One goroutine may read while another writes; Close may be
// called by anyone at any time.
type Conn struct {
	c *websocket.Conn
}

// Read waits for the next binary message and hands it to f; the bytes are only valid
// inside the call. It returns f's error, or that of the connection, after which the
// connection is of no more use. While it waits it holds no message buffer.
func (c *Conn) Read(f func(msg []byte) error) error {
	kind, r, err := c.c.NextReader()
	if err != nil {
		return err
	}
	if kind != websocket.BinaryMessage {
		c.Close(CloseUnsupported, "binary messages only")
		return ErrText
	}
	buf := messages.Get().(*[]byte)
	defer messages.Put(buf)
	msg, n := *buf, 0
	for {
		m, err := r.Read(msg[n:])
		n += m
		if err == io.EOF {
			return f(msg[:n])
		}
		if err != nil {
			return err
		}
		if n == len(msg) {
			// One more byte than the limit: the reader above refuses first.
			msg = append(make([]byte, 0, min(4*len(msg), messageLimit+1)), msg...)
			msg = msg[:cap(msg)]
		}
	}
}

// Write sends msg as one binary message, within WriteTimeout. One caller at a time.
func (c *Conn) Write(msg []byte) error {
	_ = c.c.SetWriteDeadline(time.Now().Add(WriteTimeout))
	return c.c.WriteMessage(websocket.BinaryMessage, msg)
}

// SetReadDeadline bounds Read; the zero time lifts the bound. After a Read that timed out the
// connection is of no more use.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.c.SetReadDeadline(t) }

// Close sends a close frame with the code if that is possible at once, and closes the
// connection: Read and Write end. reason is cut at 100 bytes.
func (c *Conn) Close(code int, reason string) error {
	if code != 0 {
		msg := websocket.FormatCloseMessage(code, reason[:min(len(reason), 100)])
		_ = c.c.WriteControl(websocket.CloseMessage, msg, time.Now().Add(closeTimeout))
	}
	return c.c.Close()
}

// RemoteAddr is the peer's address as this host sees it.
func (c *Conn) RemoteAddr() net.Addr { return c.c.RemoteAddr() }

// LocalAddr is the address on this host.
func (c *Conn) LocalAddr() net.Addr { return c.c.LocalAddr() }

// TLS is the state of the TLS connection below; ok is false when there is none on this
// host.
func (c *Conn) TLS() (state tls.ConnectionState, ok bool) {
	t, ok := c.c.NetConn().(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return tls.ConnectionState{}, false
	}
	return t.ConnectionState(), true
}

func newConn(c *websocket.Conn) *Conn {
	c.SetReadLimit(messageLimit)
	tune(c.NetConn())
	return &Conn{c: c}
}

// CloseCode is the code of the close frame that ended the connection; 0 if none did.
func CloseCode(err error) int {
	if e, ok := errors.AsType[*websocket.CloseError](err); ok {
		return e.Code
	}
	return 0
}

// HTTPError is an answer other than 101 to the upgrade.
type HTTPError struct {
	Status     int
	RetryAfter time.Duration // from Retry-After (RFC 9110 §10.2.3); 0: not given
	Text       string        // begin of the body
}

func (e *HTTPError) Error() string {
	return fmt.Sprintf("the relay answered HTTP %d %q", e.Status, e.Text)
}
