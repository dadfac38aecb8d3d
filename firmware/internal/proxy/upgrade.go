package proxy

import (
	"io"
	"net"
	"net/http"
	"time"
)

// tunnelBuffer is the buffer of each direction of an upgraded connection, in bytes:
// small, because a hundred idle WebSockets must not cost megabytes.
const tunnelBuffer = 4 << 10

// closeGrace is how long one direction may go on when the other has ended.
const closeGrace = 5 * time.Second

// upgraded passes a 101 answer on and then bytes both ways until either side ends
// (RFC 9110 §7.8, RFC 6455).
func (x *exchange) upgraded() {
	resp := x.resp
	if !canHijack(x.w) {
		x.refuse(http.StatusBadGateway, "cannot switch protocols here")
		return
	}
	up := resp.Conn()
	if err := x.stream(func() { resp.Abort() }); err != nil {
		x.refuseFor(err)
		return
	}
	defer x.unstream()
	x.responseFields(resp.Fields)
	h := x.w.Header()
	h["Connection"] = []string{"Upgrade"}
	h["Upgrade"] = []string{resp.Upgrade}
	x.w.WriteHeader(http.StatusSwitchingProtocols)
	down, buffered, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer down.Close()
	_ = down.SetDeadline(time.Time{})

	inbound := make(chan struct{})
	go func() {
		defer close(inbound)
		var early []byte
		if n := buffered.Reader.Buffered(); n > 0 {
			early, _ = buffered.Reader.Peek(n)
		}
		if _, err := up.Write(early); err == nil {
			relay(up, down)
		}
		halfClose(up)
	}()
	relay(down, up)
	halfClose(down)
	// What the client still sends is worth a short wait, no more.
	t := time.NewTimer(closeGrace)
	defer t.Stop()
	select {
	case <-inbound:
	case <-t.C:
	}
	_ = down.Close()
	resp.Abort()
	<-inbound
}

// relay copies until the end or an error of either side.
func relay(to io.Writer, from io.Reader) {
	buf := make([]byte, tunnelBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// halfClose says that no more will come, where the connection has a way to say so.
func halfClose(c net.Conn) {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite()
		return
	}
	_ = c.Close()
}

func canHijack(w http.ResponseWriter) bool {
	for {
		if _, ok := w.(http.Hijacker); ok {
			return true
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return false
		}
		w = u.Unwrap()
	}
}
