package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const patience = 20 * time.Second

// What passes the forwarder is the same bytes, but for one line after each request line; a
// parser and writer of HTTP in between would put fields in order and swallow the rest.
func TestForwarderAddsOneLine(t *testing.T) {
	const field = "X-CloudREST-Token: crt_x\r\n"
	requests := []string{
		"GET /a HTTP/1.1\r\nhost:  h\r\nx-UPPER:\t1 \r\nX-upper: 2\r\n\r\n",
		"PUT /b?c HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n\r\n\r\n!",
		"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n4;x=y\r\n\r\n\r\n\r\n00a\r\n0123456789\r\n0\r\nT: 1\r\nT: 2\r\n\r\n",
		"M-SEARCH * HTTP/1.1\r\nHost: h\r\n\r\n",
	}
	const answers = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 Fine\r\ntransfer-ENCODING: chunked\r\n\r\n1\r\nx\r\n0\r\nt: 1\r\n\r\n" +
		"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\nno HTTP at all"
	s := httptest.NewUnstartedServer(nil) // for its certificate
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	l, err := tls.Listen("tcp", "127.0.0.1:0", s.TLS)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := ""
	for _, r := range requests {
		first, rest, _ := strings.Cut(r, "\r\n")
		want += first + "\r\n" + field + rest
	}
	arrived := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			arrived <- err.Error()
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		got := make([]byte, len(want))
		n, _ := io.ReadFull(c, got)
		arrived <- string(got[:n])
		_, _ = io.WriteString(c, answers)
	}()
	f, err := forward(l.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "example.com"}, "crt_x") // what the test's certificate is for
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	c, err := net.Dial("tcp", f.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, strings.Join(requests, "")); err != nil {
		t.Fatal(err)
	}
	if got := <-arrived; got != want {
		t.Errorf("arrived\n%q\nwant\n%q", got, want)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != answers {
		t.Errorf("came back\n%q, %v\nwant\n%q", got, err, answers)
	}
}

// What the forwarder cannot follow ends the connection: nothing may be taken for a head that
// is none.
func TestForwarderRefusesWhatItCannotFollow(t *testing.T) {
	for _, text := range []string{
		"\r\nGET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
		"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "GET /" + strings.Repeat("x", headBytes) + " HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost",
	} {
		f := &forwarder{line: "T: 1\r\n"}
		if err := f.requests(io.Discard, bufio.NewReader(strings.NewReader(text))); err == nil || err == io.EOF && !strings.HasSuffix(text, "Host") {
			t.Errorf("%.40q: %v, want a refusal", text, err)
		}
	}
}

func FuzzForwarder(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: h\r\n\r\nPUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab"))
	f.Add([]byte("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		const line = "\x00added\x00"
		var out bytes.Buffer
		fw := &forwarder{line: line}
		_ = fw.requests(&out, bufio.NewReader(bytes.NewReader(in)))
		if got := bytes.ReplaceAll(out.Bytes(), []byte(line), nil); !bytes.Contains(in, []byte(line)) && !bytes.HasPrefix(in, got) {
			t.Errorf("passed on %q of %q", got, in)
		}
	})
}

// The daemons are wired as users wire them: a stored answer comes from the one nearest to the
// client.
func TestPaths(t *testing.T) {
	if testing.Short() {
		t.Skip("builds both daemons")
	}
	origin := newCounting(t)
	bin := t.TempDir()
	for path, want := range map[string]string{pathGateway: "cloudrest-gateway; hit", pathRelay: "cloudrest-relay; hit"} {
		d, err := newDaemons(bin, testLog{t}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer d.close()
		target, ca, err := d.start(t.Context(), path, origin.url)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		before, client := origin.asked.Load(), clientOf(t, ca)
		for i := range 2 {
			resp, err := client.Get(target + "/x-" + path)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || string(b) != "x" {
				t.Fatalf("%s: %s %q, %v", path, resp.Status, b, err)
			}
			if got := strings.Join(resp.Header["Cache-Status"], ", "); i > 0 && !strings.Contains(got, want) {
				t.Errorf("%s: Cache-Status %q, want one with %q", path, got, want)
			}
		}
		if n := origin.asked.Load() - before; n != 1 {
			t.Errorf("%s: the origin was asked %d times, want once", path, n)
		}
		d.close()
	}
	d, err := newDaemons(bin, io.Discard, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if _, _, err := d.start(t.Context(), "x", origin.url); err == nil {
		t.Error("an unknown path is accepted")
	}
	d.options = []string{"--no-such-option"}
	if _, _, err := d.start(t.Context(), pathGateway, origin.url); err == nil || !strings.Contains(err.Error(), "it ended") {
		t.Errorf("a daemon that ends at once: %v", err)
	}
}
