package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
)

// forwarder is a listener in front of the relay that adds the token which the suite does not
// know: one field line after each request line. Every other byte passes as it is, in both
// directions, and so do interim answers, trailers, and the end of a connection.
type forwarder struct {
	listener net.Listener
	relay    string
	tls      *tls.Config
	line     string // the field, with its end of line
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // nil after close; guarded by mu
}

// forward listens on loopback, and dials relay by conf.
func forward(relay string, conf *tls.Config, token string) (*forwarder, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &forwarder{listener: l, relay: relay, line: "X-CloudREST-Token: " + token + "\r\n", conns: map[net.Conn]bool{}, tls: conf}
	f.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.wg.Go(func() { f.serve(c) })
		}
	})
	return f, nil
}

func (f *forwarder) addr() string { return f.listener.Addr().String() }

func (f *forwarder) close() {
	_ = f.listener.Close()
	f.mu.Lock()
	for c := range f.conns {
		_ = c.Close()
	}
	f.conns = nil
	f.mu.Unlock()
	f.wg.Wait()
}

// keep notes a connection for close; false: it is too late.
func (f *forwarder) keep(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conns == nil {
		return false
	}
	f.conns[c] = true
	return true
}

func (f *forwarder) drop(c net.Conn) {
	_ = c.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
}

// serve carries one connection. Either end's end is the other's.
func (f *forwarder) serve(client net.Conn) {
	defer f.drop(client)
	if !f.keep(client) {
		return
	}
	relay, err := tls.Dial("tcp", f.relay, f.tls)
	if err != nil {
		return
	}
	defer f.drop(relay)
	if !f.keep(relay) {
		return
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(client, relay)
		_ = client.Close()
	}()
	_ = f.requests(relay, bufio.NewReader(client))
	_ = relay.Close()
	<-back
}

// headBytes bounds one line of a head.
const headBytes = 64 << 10

// requests copies requests one after the other, each with the field.
func (f *forwarder) requests(w io.Writer, r *bufio.Reader) error {
	for {
		head, length, err := f.head(r)
		if err != nil {
			return err
		}
		if _, err = w.Write(head); err != nil {
			return err
		}
		if length != chunked {
			_, err = io.CopyN(w, r, length)
		} else {
			err = chunks(w, r)
		}
		if err != nil {
			return err
		}
	}
}

// chunked is the length of a body that tells its own end.
const chunked = -1

// head reads a head and adds the field.
func (f *forwarder) head(r *bufio.Reader) (head []byte, length int64, err error) {
	for first := true; ; first = false {
		line, err := readLine(r)
		if err != nil {
			return nil, 0, err
		}
		head = append(head, line...)
		text := strings.TrimRight(string(line), "\r\n")
		if first {
			if text == "" {
				return nil, 0, errors.New("no request line")
			}
			head = append(head, f.line...)
			continue
		}
		if text == "" {
			return head, length, nil
		}
		name, value, _ := strings.Cut(text, ":")
		switch value = strings.TrimSpace(value); {
		case strings.EqualFold(name, "Transfer-Encoding"):
			length = chunked
		case strings.EqualFold(name, "Content-Length") && length != chunked:
			if length, err = strconv.ParseInt(value, 10, 63); err != nil || length < 0 {
				return nil, 0, fmt.Errorf("length %q", value)
			}
		}
	}
}

// chunks copies a chunked body with its trailers (RFC 9112 §7.1).
func chunks(w io.Writer, r *bufio.Reader) error {
	for {
		line, err := readLine(r)
		if err != nil {
			return err
		}
		if _, err := w.Write(line); err != nil {
			return err
		}
		text, _, _ := bytes.Cut(line, []byte(";"))
		n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 16, 62)
		if err != nil || n < 0 {
			return fmt.Errorf("chunk of %q", text)
		}
		if n > 0 {
			if _, err := io.CopyN(w, r, n+int64(len("\r\n"))); err != nil {
				return err
			}
			continue
		}
		for { // trailers
			line, err := readLine(r)
			if err != nil {
				return err
			}
			if _, err := w.Write(line); err != nil {
				return err
			}
			if len(bytes.TrimRight(line, "\r\n")) == 0 {
				return nil
			}
		}
	}
}

// readLine reads a line with its end.
func readLine(r *bufio.Reader) (line []byte, err error) {
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > headBytes {
			return nil, errors.New("a line that is too long")
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}
