package exchange

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"time"

	"github.com/cloudrest/cloudrest/tether/frame"
)

// tunnel answers 101 and carries bytes both ways until both directions have ended.
func (f *forward) tunnel(h frame.Response) error {
	f.st.Endless()
	maps.Copy(f.w.Header(), h.Header)
	header := f.w.Header().Clone()
	conn, buf, err := http.NewResponseController(f.w).Hijack()
	if err != nil {
		return &Error{Status: http.StatusBadGateway, Err: fmt.Errorf("take over the client's connection: %w", err)}
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	f.mark(header)
	header["Connection"] = []string{"Upgrade"}
	delete(header, "Content-Length")
	var head bytes.Buffer
	head.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = header.Write(&head)
	head.WriteString("\r\n")
	_ = conn.SetWriteDeadline(time.Now().Add(halfOpen))
	if _, err := conn.Write(head.Bytes()); err != nil {
		return nil // the connection is hijacked: nobody can be answered any more
	}
	_ = conn.SetWriteDeadline(time.Time{})
	up := make(chan struct{})
	go func() {
		defer close(up)
		// What the client sent behind its request waits in the server's buffer.
		if n := buf.Reader.Buffered(); n > 0 {
			p, _ := buf.Reader.Peek(n)
			if _, err := f.st.Write(p); err != nil {
				return
			}
		}
		b := uploads.Get().(*[]byte)
		defer uploads.Put(b)
		if _, err := io.CopyBuffer(struct{ io.Writer }{f.st}, struct{ io.Reader }{conn}, *b); err == nil {
			_ = f.st.End(nil)
		} else {
			f.st.Reset(frame.ResetCancel)
		}
	}()
	for {
		if _, _, err = f.st.WriteChunk(context.Background(), conn); err != nil {
			break
		}
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok && err == io.EOF && half.CloseWrite() == nil {
		_ = conn.SetReadDeadline(time.Now().Add(halfOpen))
	} else {
		conn.Close()
	}
	f.st.SetWriteDeadline(time.Now().Add(halfOpen))
	<-up
	return nil
}
