package rig

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Target is what a Driver asks.
type Target struct {
	Addr   string // host:port, which is also the Host field
	Roots  *x509.CertPool
	Prefix string // of the path: "/d/<id>"
	Token  string // "": a token of the origin's own, so that all requests have the same length
}

// path is what a phone asks for.
const path = "/api/v1/zones?since=17"

// Driver keeps connections open and asks on all of them at once, as little as possible
// beside that: it shares the machine with what is measured.
type Driver struct {
	conns []*tls.Conn
	in    []*bufio.Reader
	ask   []byte
	size  int
}

const (
	dialWait   = 10 * time.Second // for a server that is starting
	dialAgain  = 20 * time.Millisecond
	answerWait = 30 * time.Second // for one block's next answer
)

// Connect opens the connections. All must use the same cipher suite, because suites differ
// more than servers do.
func Connect(ctx context.Context, t Target, l Load) (*Driver, error) {
	d := &Driver{size: l.Size}
	token := t.Token
	if token == "" {
		token = "0123456789abcdef0123456789abcdef"
	}
	d.ask = []byte("GET " + t.Prefix + path + " HTTP/1.1\r\nHost: " + t.Addr + "\r\nUser-Agent: bench/1\r\nAccept: application/json\r\n" +
		"Accept-Language: en\r\nAuthorization: Bearer " + token + "\r\n\r\n")
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: dialWait}, Config: &tls.Config{RootCAs: t.Roots, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}}
	for deadline := time.Now().Add(dialWait); len(d.conns) < l.Conns; {
		c, err := dialer.DialContext(ctx, "tcp", t.Addr)
		if err != nil {
			if len(d.conns) > 0 || time.Now().After(deadline) || ctx.Err() != nil {
				d.Close()
				return nil, fmt.Errorf("connect: %w", err)
			}
			time.Sleep(dialAgain)
			continue
		}
		tc := c.(*tls.Conn)
		d.conns, d.in = append(d.conns, tc), append(d.in, bufio.NewReaderSize(tc, 16<<10))
		if s := tc.ConnectionState(); s.CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
			d.Close()
			return nil, fmt.Errorf("cipher suite %s, want the same for all: TLS_AES_128_GCM_SHA256", tls.CipherSuiteName(s.CipherSuite))
		}
	}
	return d, nil
}

// Close closes the connections.
func (d *Driver) Close() {
	for _, c := range d.conns {
		_ = c.Close()
	}
}

// Patiently asks once, again and again until it works: a device has yet to come.
func (d *Driver) Patiently(ctx context.Context, wait time.Duration) error {
	for deadline := time.Now().Add(wait); ; time.Sleep(5 * dialAgain) {
		err := d.one(0)
		if err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		if _, answered := errors.AsType[*StatusError](err); !answered {
			return err // the connection is spent
		}
	}
}

// Run asks n times in all.
func (d *Driver) Run(ctx context.Context, n int) error {
	var left atomic.Int64
	left.Store(int64(n))
	errs := make([]error, len(d.conns))
	var wg sync.WaitGroup
	for i, c := range d.conns {
		_ = c.SetDeadline(time.Now().Add(answerWait + time.Duration(n)*time.Millisecond))
		wg.Go(func() {
			for left.Add(-1) >= 0 && ctx.Err() == nil && errs[i] == nil {
				errs[i] = d.one(i)
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

// StatusError is an answer that is not the one expected.
type StatusError struct {
	Status int
	Bytes  int64 // of the body
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("status %d with %d bytes", e.Status, e.Bytes)
}

func (d *Driver) one(i int) error {
	if _, err := d.conns[i].Write(d.ask); err != nil {
		return err
	}
	resp, err := http.ReadResponse(d.in[i], nil)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || n != int64(d.size) {
		return &StatusError{resp.StatusCode, n}
	}
	return nil
}
