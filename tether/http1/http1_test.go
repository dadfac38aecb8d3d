package http1

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

const patience = 20 * time.Second

// serve starts a server on loopback and ends it with the test.
func serve(t *testing.T, s *Server) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != http.ErrServerClosed {
			t.Errorf("Serve = %v, want ErrServerClosed", err)
		}
		s.running.Wait()
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c, bufio.NewReader(c)
}

// ask sends raw bytes and reads one answer.
func ask(t *testing.T, addr, raw, method string) (*http.Response, string) {
	t.Helper()
	c, br := dial(t, addr)
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(br, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("no answer to %.60q: %v", raw, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("body: %v", err)
	}
	return resp, string(body)
}

var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s host=%s len=%d body=%q err=%v trailer=%v", r.Method, r.URL.RequestURI(), r.Host, r.ContentLength, b, err, r.Trailer)
})

// Two parsers could read these differently, so none of them is served.
func TestRefused(t *testing.T) {
	reached := false
	addr := serve(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reached = true })})
	long := strings.Repeat("a", 40<<10)
	for name, c := range map[string]struct {
		raw  string
		want int
	}{
		"RFC 9112 §6.1 both framings":      {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"RFC 9112 §6.3 two Content-Length": {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400},
		"RFC 9110 §8.6 list":               {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3, 3\r\n\r\nabc", 400},
		"RFC 9110 §8.6 sign":               {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nabc", 400},
		"RFC 9110 §8.6 overflow":           {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n", 400},
		"RFC 9112 §6.1 unknown coding":     {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501},
		"RFC 9112 §6.1 coding twice":       {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501},
		"RFC 9112 §6.1 coding in 1.0":      {"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		"RFC 9112 §2.2 bare LF":            {"GET / HTTP/1.1\nHost: h\n\n", 400},
		"RFC 9112 §2.2 bare LF in fields":  {"GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n", 400},
		"RFC 9112 §2.2 bare CR":            {"GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n", 400},
		"RFC 9112 §5.2 obs-fold":           {"GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n", 400},
		"RFC 9112 §5.1 blank before colon": {"GET / HTTP/1.1\r\nHost: h\r\nA : b\r\n\r\n", 400},
		"RFC 9112 §5 no colon":             {"GET / HTTP/1.1\r\nHost: h\r\nAb\r\n\r\n", 400},
		"RFC 9110 §5.5 NUL":                {"GET / HTTP/1.1\r\nHost: h\r\nA: b\x00\r\n\r\n", 400},
		"RFC 9112 §3.2 no Host":            {"GET / HTTP/1.1\r\n\r\n", 400},
		"RFC 9112 §3.2 two Hosts":          {"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400},
		"RFC 9112 §3.2 bad Host":           {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
		"RFC 9112 §3.2 user in Host":       {"GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", 400},
		"RFC 9112 §3.2.2 another host":     {"GET http://other/ HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		"RFC 9112 §3 two blanks":           {"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		"RFC 9112 §3 method":               {"G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		"RFC 9112 §3 control in target":    {"GET /\x7f HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		"RFC 9112 §3.2 relative target":    {"GET a HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		"RFC 9112 §3.2 fragment":           {"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		"RFC 9112 §3.2 fragment, query":    {"GET /a?b#c HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		"RFC 3986 §2.1 bad escape":         {"GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", 400},
		"RFC 9112 §2.3 version":            {"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505},
		"RFC 9112 §2.3 malformed version":  {"GET / HTTP/1.2x\r\nHost: h\r\n\r\n", 400},
		"RFC 9110 §9.3.6 CONNECT":          {"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\n\r\n", 405},
		"RFC 9110 §10.1.1 unknown Expect":  {"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nExpect: x\r\n\r\n", 417},
		"RFC 9110 §4.1 long target":        {"GET /" + long + " HTTP/1.1\r\nHost: h\r\n\r\n", 414},
		"RFC 6585 §5 large header":         {"GET / HTTP/1.1\r\nHost: h\r\nA: " + long + "\r\n\r\n", 431},
		"RFC 6585 §5 many fields":          {"GET / HTTP/1.1\r\nHost: h\r\n" + strings.Repeat("A: b\r\n", 200) + "\r\n", 431},
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := ask(t, addr, c.raw, "GET")
			if resp.StatusCode != c.want || !resp.Close || !strings.Contains(body, fmt.Sprintf(`"error":%d`, c.want)) {
				t.Errorf("answer = %s, close %v, %q, want %d and a close", resp.Status, resp.Close, body, c.want)
			}
		})
	}
	if reached {
		t.Error("a refused request reached the handler")
	}
}

func TestServed(t *testing.T) {
	addr := serve(t, &Server{Handler: echo})
	for name, c := range map[string]struct{ raw, want string }{
		"plain":               {"GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n", `GET /a?b=c host=h len=0 body="" err=<nil> trailer=map[]`},
		"escapes kept":        {"GET /a%2Fb/%C3%A4?x=%20&y=/ HTTP/1.1\r\nHost: h\r\n\r\n", `GET /a%2Fb/%C3%A4?x=%20&y=/ host=h`},
		"odd bytes":           {"GET /a!'()*[]|? HTTP/1.1\r\nHost: h\r\n\r\n", `GET /a`},
		"two slashes":         {"GET //a//b HTTP/1.1\r\nHost: h\r\n\r\n", `GET //a//b host=h`},
		"empty line first":    {"\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", `GET / host=h`},
		"absolute form":       {"GET http://h/x?y HTTP/1.1\r\nHost: h\r\n\r\n", `GET /x?y host=h`},
		"absolute, no path":   {"GET http://h HTTP/1.1\r\nHost: h\r\n\r\n", `GET / host=h`},
		"asterisk":            {"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", `OPTIONS * host=h`},
		"length":              {"POST / HTTP/1.1\r\nHost: h\r\ncontent-length: 3\r\n\r\nabcdef", `len=3 body="abc" err=<nil>`},
		"chunked":             {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\n\r\n", `len=-1 body="abc" err=<nil>`},
		"trailers":            {"POST / HTTP/1.1\r\nHost: h\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 7\r\nHost: evil\r\n\r\n", `trailer=map[X-Sum:[7]]`},
		"bad chunk size":      {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n", `malformed chunk size`},
		"chunk size overflow": {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nab\r\n0\r\n\r\n", `malformed chunk size`},
		"chunk too long":      {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n", `a chunk does not end`},
		"bare LF in chunks":   {"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n", `does not end with CR LF`},
		"HTTP/1.0":            {"GET / HTTP/1.0\r\n\r\n", `GET / host= len=0`},
	} {
		t.Run(name, func(t *testing.T) {
			if resp, body := ask(t, addr, c.raw, "GET"); resp.StatusCode != 200 || !strings.Contains(body, c.want) {
				t.Errorf("answer = %s %q, want %q in it", resp.Status, body, c.want)
			}
		})
	}
}

// Requests sent in one go are answered in order on one connection, and bytes of a body
// never become a request.
func TestPipelining(t *testing.T) {
	addr := serve(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // leaves the body unread
		io.WriteString(w, r.URL.Path)
	})})
	c, br := dial(t, addr)
	io.WriteString(c, "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 27\r\n\r\nGET /evil HTTP/1.1\r\nHost: h"+
		"POST /2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
	for _, want := range []string{"/1", "/2", "/3"} {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != want || resp.ContentLength != 2 {
			t.Errorf("answer = %q, length %d, want %q", body, resp.ContentLength, want)
		}
	}
	if _, err := br.ReadByte(); err != io.EOF {
		t.Errorf("after Connection: close: %v, want EOF", err)
	}
}

func TestAnswerFraming(t *testing.T) {
	addr := serve(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/small":
			io.WriteString(w, "ab")
			io.WriteString(w, "cd")
		case "/big":
			for range 100 {
				w.Write(bytes.Repeat([]byte{'x'}, 1000))
			}
		case "/flushed":
			io.WriteString(w, "a")
			w.(http.Flusher).Flush()
			io.WriteString(w, "b")
		case "/trailers":
			w.Header().Set("Trailer", "X-A")
			io.WriteString(w, "body")
			w.Header().Set("X-A", "1")
			w.Header().Set(http.TrailerPrefix+"X-B", "2")
		case "/204":
			w.Header().Set("Content-Length", "3")
			w.WriteHeader(204)
		case "/304":
			w.Header().Set("Content-Length", "3")
			w.WriteHeader(304)
		case "/split":
			w.Header().Set("X-Evil", "a\r\nSet-Cookie: x=1")
			w.Header()["Bad Name"] = []string{"v"}
		case "/connection":
			w.Header().Set("Connection", "close, X")
			w.Header().Set("Transfer-Encoding", "identity")
		}
	})})
	get := func(method, path, version string) (*http.Response, string) {
		return ask(t, addr, method+" "+path+" "+version+"\r\nHost: h\r\n\r\n", method)
	}
	check := func(path, version string, wantBody string, wantLength int64, wantClose bool) *http.Response {
		t.Helper()
		resp, body := get("GET", path, version)
		if body != wantBody || resp.ContentLength != wantLength || resp.Close != wantClose {
			t.Errorf("GET %s %s = %.20q, length %d, close %v; want %.20q, %d, %v", path, version, body, resp.ContentLength, resp.Close, wantBody, wantLength, wantClose)
		}
		if resp.Header.Get("Date") == "" {
			t.Errorf("GET %s: no Date", path)
		}
		return resp
	}
	check("/small", "HTTP/1.1", "abcd", 4, false)
	check("/small", "HTTP/1.0", "abcd", 4, true)
	check("/big", "HTTP/1.1", strings.Repeat("x", 100_000), -1, false)
	check("/big", "HTTP/1.0", strings.Repeat("x", 100_000), -1, true)
	check("/flushed", "HTTP/1.1", "ab", -1, false)
	check("/nothing", "HTTP/1.1", "", 0, false)
	check("/204", "HTTP/1.1", "", 0, false)
	if resp := check("/304", "HTTP/1.1", "", 0, false); resp.Header.Get("Content-Length") != "3" { // RFC 9110 §8.6: as a 200 would have
		t.Errorf("304 = %v, want Content-Length 3", resp.Header)
	}
	if resp := check("/trailers", "HTTP/1.1", "body", -1, false); resp.Trailer.Get("X-A") != "1" || resp.Trailer.Get("X-B") != "2" {
		t.Errorf("trailers = %v", resp.Trailer)
	}
	if resp := check("/split", "HTTP/1.1", "", 0, false); resp.Header.Get("Set-Cookie") != "" || resp.Header.Get("X-Evil") != "" {
		t.Errorf("a value with a line break went out: %v", resp.Header)
	}
	if resp := check("/connection", "HTTP/1.1", "", 0, true); resp.Header.Get("Transfer-Encoding") != "" || len(resp.TransferEncoding) > 0 {
		t.Errorf("framing of the handler went out: %v", resp.Header)
	}
	for _, path := range []string{"/small", "/big", "/flushed"} {
		if resp, body := get("HEAD", path, "HTTP/1.1"); resp.StatusCode != 200 || body != "" || resp.Close {
			t.Errorf("HEAD %s = %s %q close %v", path, resp.Status, body, resp.Close)
		}
	}
}

// An answer that ends too soon, or a handler that aborts, never looks complete.
func TestAbort(t *testing.T) {
	addr := serve(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/short" {
			w.Header().Set("Content-Length", "10")
		}
		io.WriteString(w, "abc")
		w.(http.Flusher).Flush()
		switch r.URL.Path {
		case "/abort":
			panic(http.ErrAbortHandler)
		case "/panic":
			panic("bug")
		}
	})})
	for _, path := range []string{"/short", "/abort", "/panic"} {
		c, br := dial(t, addr)
		io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: h\r\n\r\n")
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("GET %s = %q and a clean end", path, b)
		}
	}
}

func TestExpectContinue(t *testing.T) {
	addr := serve(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(413)
			return
		}
		echo(w, r)
	})})
	c, br := dial(t, addr)
	io.WriteString(c, "POST /yes HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
	if line, err := br.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("first line = %q, %v", line, err)
	}
	br.ReadString('\n')
	io.WriteString(c, "ab")
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 200 || resp.Close {
		t.Errorf("answer = %v, %v", resp, err)
	}
	resp, _ := ask(t, addr, "POST /no HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", "POST")
	if resp.StatusCode != 413 || !resp.Close {
		t.Errorf("refused = %s, close %v, want 413 and a close: the client may still send", resp.Status, resp.Close)
	}
}

func TestInterim(t *testing.T) {
	addr := serve(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(103)
		w.Header().Del("Link")
		io.WriteString(w, "ok")
	})})
	c, br := dial(t, addr)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	early, err := http.ReadResponse(br, nil)
	if err != nil || early.StatusCode != 103 || early.Header.Get("Link") != "</a>" {
		t.Fatalf("first = %v, %v", early, err)
	}
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 200 || resp.Header.Get("Link") != "" {
		t.Errorf("second = %v, %v", resp, err)
	}
}

// The handler writes while the body is still coming (RFC 9110 §7.5 lets a server answer early).
func TestFullDuplex(t *testing.T) {
	addr := serve(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		buf := make([]byte, 1)
		for {
			if _, err := r.Body.Read(buf); err != nil {
				return
			}
			w.Write(bytes.ToUpper(buf))
			w.(http.Flusher).Flush()
		}
	})})
	c, br := dial(t, addr)
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1)
	for _, b := range []byte("abc") {
		fmt.Fprintf(c, "1\r\n%c\r\n", b)
		if _, err := io.ReadFull(resp.Body, got); err != nil || got[0] != b-32 {
			t.Fatalf("echo of %c = %c, %v", b, got[0], err)
		}
	}
	io.WriteString(c, "0\r\n\r\n")
	if _, err := resp.Body.Read(got); err != io.EOF {
		t.Errorf("end = %v, want EOF", err)
	}
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nz")
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("the next request = %v, %v", resp, err)
	}
}

// A goroutine that still reads the body after the handler returned gets no byte of the
// next request.
func TestStrayReader(t *testing.T) {
	stray := make(chan string, 1)
	addr := serve(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reading := make(chan struct{})
		go func() {
			close(reading)
			b, _ := io.ReadAll(r.Body)
			stray <- string(b)
		}()
		<-reading
		time.Sleep(20 * time.Millisecond) // most likely inside Read now; either way the test holds
		w.WriteHeader(200)
	})})
	c, br := dial(t, addr)
	io.WriteString(c, "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab")
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("answer = %v, %v", resp, err)
	}
	io.WriteString(c, "cdeGET /secret HTTP/1.1\r\nHost: h\r\n\r\n")
	select {
	case got := <-stray:
		if strings.Contains(got, "GET") {
			t.Errorf("the stray reader got %q", got)
		}
	case <-time.After(patience):
		t.Error("the stray reader hangs")
	}
}

func TestHijack(t *testing.T) {
	addr := serve(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		io.Copy(c, io.LimitReader(rw, 10))
		if _, err := w.Write(nil); err != http.ErrHijacked {
			t.Errorf("Write after Hijack = %v, want ErrHijacked", err)
		}
	})})
	c, br := dial(t, addr)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nearly")
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("answer = %v, %v", resp, err)
	}
	io.WriteString(c, "later")
	if got, err := io.ReadAll(br); err != nil || string(got) != "earlylater" {
		t.Errorf("echo = %q, %v", got, err)
	}
}

// The context ends when the client goes away, also for those derived from it.
func TestClientGone(t *testing.T) {
	ended := make(chan error, 1)
	addr := serve(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		<-ctx.Done()
		ended <- ctx.Err()
	})})
	c, _ := dial(t, addr)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	c.Close()
	if err := <-ended; err != context.Canceled {
		t.Errorf("context ended with %v, want Canceled", err)
	}
}

func TestLimits(t *testing.T) {
	addr := serve(t, &Server{Handler: echo, HeadTimeout: tick, IdleTimeout: 2 * tick, IOTimeout: tick})
	for name, raw := range map[string]string{
		"slow head":   "GET / HTTP/1.1\r\nHost:",
		"idle":        "",
		"slow body":   "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\na",
		"idle second": "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, br := dial(t, addr)
			io.WriteString(c, raw)
			if _, err := io.Copy(io.Discard, br); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				t.Errorf("the server keeps the connection: %v", err)
			}
		})
	}
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// A client that does not read is cut off; a slow but living one is not.
func TestSlowReader(t *testing.T) {
	result := make(chan error, 1)
	addr := serve(t, &Server{IOTimeout: 2 * tick, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		for err == nil {
			_, err = w.Write(make([]byte, 1<<20))
		}
		result <- err
	})})
	c, _ := dial(t, addr)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	select {
	case <-result:
	case <-time.After(patience):
		t.Error("the handler still writes to a client that does not read")
	}
}

func TestShutdown(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-release
		io.WriteString(w, "done")
	})}
	addr := serve(t, s)
	idle, idleReader := dial(t, addr)
	_ = idle
	c, br := dial(t, addr)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	<-started
	ended := make(chan error, 1)
	go func() { ended <- s.Shutdown(t.Context()) }()
	if _, err := idleReader.ReadByte(); err == nil || isTimeout(err) {
		t.Errorf("an idle connection = %v, want it closed", err)
	}
	close(release)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || !resp.Close {
		t.Fatalf("a request in flight = %v, %v, want an answer with Connection: close", resp, err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "done" {
		t.Errorf("its body = %q, %v", b, err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Shutdown = %v", err)
	}
}

func TestShutdownCutsOff(t *testing.T) {
	started := make(chan struct{})
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
	})}
	addr := serve(t, s)
	c, _ := dial(t, addr)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	<-started
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err != context.DeadlineExceeded {
		t.Errorf("Shutdown = %v, want DeadlineExceeded", err)
	}
}

func certificate(t testing.TB) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// One TLS listener serves HTTP/1.1 and HTTP/2 with one handler, many at once.
func TestTLS(t *testing.T) {
	s := &Server{Handler: echo, TLS: &tls.Config{Certificates: []tls.Certificate{certificate(t)}, NextProtos: []string{"h2", "http/1.1"}}}
	if !HasHTTP2 {
		s.TLS.NextProtos = s.TLS.NextProtos[1:]
	}
	addr := serve(t, s)
	for _, h2 := range []bool{false, true} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: h2}
		client := &http.Client{Transport: tr, Timeout: patience}
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for j := range 10 {
					body := strings.Repeat("x", i*j*100)
					resp, err := client.Post(fmt.Sprintf("https://%s/%d", addr, i), "text/plain", strings.NewReader(body))
					if err != nil {
						t.Error(err)
						return
					}
					got, _ := io.ReadAll(resp.Body)
					resp.Body.Close()
					if want := fmt.Sprintf("body=%q", body); !strings.Contains(string(got), want) || (resp.ProtoMajor == 2) != (h2 && HasHTTP2) {
						t.Errorf("h2 %v: %s %.80q", h2, resp.Proto, got)
					}
				}
			})
		}
		wg.Wait()
		tr.CloseIdleConnections()
	}
}

// FuzzConn: no bytes make the server panic, hang or serve a request with two framings.
func FuzzConn(f *testing.F) {
	f.Add([]byte("GET /a HTTP/1.1\r\nHost: h\r\n\r\nPOST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n"))
	f.Add([]byte("GET http://h/%2f?x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Transfer-Encoding") != "" || r.ContentLength > 0 && len(r.TransferEncoding) > 0 || strings.ContainsAny(r.Host+r.URL.Path, "\r\n") && !strings.Contains(r.RequestURI, "%") {
				t.Errorf("served %+v", r)
			}
			echo(w, r)
		})}
		server, client := net.Pipe()
		s.conns = map[*conn]struct{}{}
		c := &conn{srv: s, raw: server, rwc: server, remote: "fuzz"}
		s.track(c)
		ended := make(chan struct{})
		go func() { c.serve(); s.running.Done(); close(ended) }()
		go io.Copy(io.Discard, client)
		client.SetWriteDeadline(time.Now().Add(patience))
		client.Write(raw)
		client.Close()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatal("the connection hangs")
		}
	})
}

func BenchmarkGet4K(b *testing.B) {
	body := bytes.Repeat([]byte{'x'}, 4096)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "4096")
		w.Write(body)
	})
	conf := func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{certificate(b)}, DynamicRecordSizingDisabled: true}
	}
	run := func(b *testing.B, start func(l net.Listener)) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		go start(l)
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, DynamicRecordSizingDisabled: true})
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 16<<10)
		b.ReportAllocs()
		for b.Loop() {
			io.WriteString(c, "GET /zones HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
			for n := 0; n < 4096; {
				m, err := c.Read(buf)
				if err != nil {
					b.Fatal(err)
				}
				n += m
			}
		}
	}
	b.Run("http1", func(b *testing.B) {
		run(b, func(l net.Listener) { (&Server{Handler: handler, TLS: conf()}).Serve(l) })
	})
	b.Run("net-http", func(b *testing.B) {
		run(b, func(l net.Listener) { (&http.Server{Handler: handler, TLSConfig: conf()}).ServeTLS(l, "", "") })
	})
}

// OpenHead makes the same answers as WriteHeader, or none.
func TestOpenHead(t *testing.T) {
	const date = "Date: Mon, 02 Jan 2006 15:04:05 GMT\r\n"
	answer := func(w http.ResponseWriter, status int, lines, body string, length int64) {
		o := w.(interface {
			OpenHead(int, int64, bool) ([]byte, bool)
			CloseHead([]byte)
		})
		b, ok := o.OpenHead(status, length, strings.Contains(lines, "Date: "))
		if !ok {
			t.Errorf("%d %q: refused", status, lines)
			return
		}
		o.CloseHead(append(b, lines...))
		if _, again := o.OpenHead(status, length, true); again {
			t.Errorf("%d %q: a second head is taken", status, lines)
		}
		w.WriteHeader(500)
		io.WriteString(w, body)
	}
	for _, tc := range []struct {
		name, request string
		status        int
		lines, body   string
		length        int64
		want          string // in place of the present date stands "Date: now"
	}{
		{"whole", "GET / HTTP/1.1\r\n", 200, date + "Content-Length: 2\r\nX: y\r\n", "ab", 2, "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 2\r\nX: y\r\n\r\nab"},
		{"without a date", "GET / HTTP/1.1\r\n", 404, "Content-Length: 2\r\n", "ab", 2, "HTTP/1.1 404 Not Found\r\nDate: now\r\nContent-Length: 2\r\n\r\nab"},
		{"HEAD", "HEAD / HTTP/1.1\r\n", 200, date + "Content-Length: 2\r\n", "", 2, "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 2\r\n\r\n"},
		{"no content", "GET / HTTP/1.1\r\n", 204, date, "", -1, "HTTP/1.1 204 No Content\r\n" + date + "\r\n"},
		{"the last one", "GET / HTTP/1.1\r\nConnection: close\r\n", 200, date + "Content-Length: 1\r\n", "a", 1, "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 1\r\nConnection: close\r\n\r\na"},
		{"HTTP/1.0", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n", 200, date + "Content-Length: 1\r\n", "a", 1, "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 1\r\nConnection: keep-alive\r\n\r\na"},
		{"length not known", "GET / HTTP/1.1\r\n", 200, date, "ab", -1, "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 2\r\n\r\nab"},
		{"more than the length", "GET / HTTP/1.1\r\n", 200, date + "Content-Length: 0\r\n", "ab", 0, "HTTP/1.1 200 OK\r\n" + date + "Content-Length: 0\r\n\r\n"},
		{"less than the length", "GET / HTTP/1.1\r\n", 200, date + "Content-Length: 3\r\n", "ab", 3, ""}, // cut off before anything was sent
	} {
		out := raw(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			answer(w, tc.status, tc.lines, tc.body, tc.length)
		})}, tc.request+"Host: h\r\n\r\n")
		got := out
		if i := strings.Index(out, "Date: "); i >= 0 && !strings.Contains(tc.lines, "Date: ") {
			end := i + strings.Index(out[i:], "\r\n")
			got = out[:i] + "Date: now" + out[end:]
		}
		if got != tc.want {
			t.Errorf("%s:\n got %q\nwant %q", tc.name, got, tc.want)
		}
	}
	// Fields that were set the usual way are not lost: then it is no way.
	out := raw(t, &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X", "y")
		if _, ok := w.(*response).OpenHead(200, 0, true); ok {
			t.Error("taken in spite of a field")
		}
		if _, ok := w.(*response).OpenHead(103, 0, true); ok {
			t.Error("an interim status is taken")
		}
	})}, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if !strings.Contains(out, "\r\nX: y\r\n") {
		t.Errorf("got %q, want the field", out)
	}
}

// raw is everything that comes back for a request after which the client sends no more.
func raw(t *testing.T, s *Server, request string) string {
	t.Helper()
	c, in := dial(t, serve(t, s))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// again is a connection on which the same request comes again and again.
type again struct {
	net.Conn
	request string
}

func (a *again) Read(b []byte) (int, error)  { return copy(b, a.request), nil }
func (a *again) Write(b []byte) (int, error) { return len(b), nil }

// One request takes its text, the exchange with all that belongs to it, and the map of its fields.
func TestAllocations(t *testing.T) {
	const most = 4
	body := bytes.Repeat([]byte{'x'}, 4096)
	a := &again{request: "GET /zones?since=17 HTTP/1.1\r\nHost: localhost\r\nUser-Agent: app\r\nAccept: */*\r\nAccept-Language: en\r\nAccept-Encoding: gzip\r\nAuthorization: Bearer x\r\n\r\n"}
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o := w.(*response)
		b, ok := o.OpenHead(200, int64(len(body)), false)
		if !ok {
			t.Error("no head")
		}
		o.CloseHead(append(b, "Content-Length: 4096\r\n"...))
		w.Write(body)
	})}
	c := &conn{srv: s, raw: a, rwc: a}
	if got := testing.AllocsPerRun(200, func() {
		if !c.one() {
			t.Fatal("the connection ended")
		}
	}); got > most {
		t.Errorf("%v allocations, want at most %d", got, most)
	}
}
