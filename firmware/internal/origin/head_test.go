package origin

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

func TestParseHead(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want head
	}{
		"RFC 9112 §4 status line": {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
			head{status: 200, minor: 1, length: 5, idleSecs: -1, fields: []Field{{"Content-Length", "5"}}}},
		"§4 no reason phrase": {"HTTP/1.1 404\r\n\r\n", head{status: 404, minor: 1, length: -1, idleSecs: -1}},
		"§4 empty reason phrase, obs-text": {"HTTP/1.1 404 \r\nX: \xe4\r\n\r\n",
			head{status: 404, minor: 1, length: -1, idleSecs: -1, fields: []Field{{"X", "\xe4"}}}},
		"§5.1 white space around the value": {"HTTP/1.1 200 OK\r\nx-y: \t a b \t\r\nempty:\r\n\r\n",
			head{status: 200, minor: 1, length: -1, idleSecs: -1, fields: []Field{{"X-Y", "a b"}, {"Empty", ""}}}},
		"§6.1 chunked":         {"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n", head{status: 200, minor: 1, length: -1, idleSecs: -1, chunked: true}},
		"§9.3 HTTP/1.0 closes": {"HTTP/1.0 200 OK\r\n\r\n", head{status: 200, length: -1, idleSecs: -1, close: true}},
		"§9.3 HTTP/1.0 keep-alive": {"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nKeep-Alive: timeout=7, max=9\r\n\r\n",
			head{status: 200, length: -1, idleSecs: 7}},
		"§9.6 close": {"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", head{status: 200, minor: 1, length: -1, idleSecs: -1, close: true}},
		"RFC 9110 §7.6.1 fields of this hop": {"HTTP/1.1 200 OK\r\nX-Hop: 1\r\nConnection: x-hop , keep-alive\r\nX-End: 2\r\nProxy-Authenticate: x\r\n\r\n",
			head{status: 200, minor: 1, length: -1, idleSecs: -1, fields: []Field{{"X-End", "2"}}}},
		"§7.8 upgrade": {"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
			head{status: 101, minor: 1, length: -1, idleSecs: -1, upgrade: "websocket"}},
	} {
		var h head
		if err := h.parseHead([]byte(c.in)); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(h.fields) == 0 {
			h.fields = nil
		}
		if !reflect.DeepEqual(h, c.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", name, h, c.want)
		}
	}
}

func TestParseHeadRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"§4 other protocol":                   "HTTP/2 200 OK\r\n\r\n",
		"§4 no version digit":                 "HTTP/1.x 200 OK\r\n\r\n",
		"§4 two digits of status":             "HTTP/1.1 20 OK\r\n\r\n",
		"§4 four digits of status":            "HTTP/1.1 2000 OK\r\n\r\n",
		"§4 status below 100":                 "HTTP/1.1 099 OK\r\n\r\n",
		"§4 control byte in the reason":       "HTTP/1.1 200 O\x00K\r\n\r\n",
		"§2.2 bare LF":                        "HTTP/1.1 200 OK\nX: 1\r\n\r\n",
		"§2.2 bare LF behind a field":         "HTTP/1.1 200 OK\r\nX: 1\nY: 2\r\n\r\n",
		"§2.2 bare CR":                        "HTTP/1.1 200 OK\r\nX: 1\rY: 2\r\n\r\n",
		"§5.1 space before the colon":         "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
		"§5.1 no colon":                       "HTTP/1.1 200 OK\r\nhello\r\n\r\n",
		"§5.1 empty name":                     "HTTP/1.1 200 OK\r\n: 1\r\n\r\n",
		"§5.1 name is no token":               "HTTP/1.1 200 OK\r\nX(): 1\r\n\r\n",
		"§5.2 obsolete folding":               "HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\n\r\n",
		"§5.2 folding with a tab":             "HTTP/1.1 200 OK\r\nX: 1\r\n\t2\r\n\r\n",
		"RFC 9110 §5.5 NUL":                   "HTTP/1.1 200 OK\r\nX: 1\x00\r\n\r\n",
		"RFC 9110 §5.5 control byte":          "HTTP/1.1 200 OK\r\nX: \x1b[2J\r\n\r\n",
		"§6.3 both framings":                  "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
		"§6.3 both framings, other way":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
		"§6.3 differing lengths":              "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
		"§6.3 repeated length":                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
		"§6.3 list of lengths":                "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
		"RFC 9110 §8.6 sign":                  "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
		"RFC 9110 §8.6 minus":                 "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
		"RFC 9110 §8.6 hex":                   "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n",
		"RFC 9110 §8.6 empty":                 "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
		"RFC 9110 §8.6 overflow":              "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
		"§6.1 other coding":                   "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
		"§6.1 identity":                       "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
		"§6.1 twice":                          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
		"§6.1 obscured":                       "HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
		"§6.1 in HTTP/1.0":                    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"§2.1 no end":                         "HTTP/1.1 200 OK\r\nX: 1\r\n",
		"nothing":                             "",
		"§3 a request is not an answer":       "GET / HTTP/1.1\r\n\r\n",
		"§4 tab instead of space":             "HTTP/1.1\t200 OK\r\n\r\n",
		"§4 no space between code and reason": "HTTP/1.1 200OK\r\n\r\n",
	} {
		var h head
		if err := h.parseHead([]byte(in)); !errors.Is(err, ErrBadAnswer) {
			t.Errorf("%s: %v, want ErrBadAnswer", name, err)
		}
	}
}

// FuzzAnswer: whatever we accept, net/http reads the same way; the rest is refused. A
// refused or broken answer leaves no connection behind that could be used again.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
		"HTTP/1.0 200 OK\r\n\r\nuntil close",
		"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\nContent-Length: 1\r\n\r\nx",
		"HTTP/1.1 200 OK\r\nConnection: x\r\nKeep-Alive: timeout=1\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		c, served := scripted(Config{}, func(_ int, s *peer) {
			s.head()
			s.send(string(in))
		})
		defer served()
		defer c.Close()
		r, err := c.Do(t.Context(), &Request{Method: "GET", Target: "/"})
		if err != nil {
			return
		}
		got, err := readAll(r)
		status, fields, whole := r.Status, append([]Field(nil), r.Fields...), err == nil
		_ = r.Close()
		if !whole {
			if n := len(c.idle); n != 0 {
				t.Errorf("%d idle connections after a broken answer", n)
			}
			return
		}
		// Informational answers come before; net/http's reader takes them one by one.
		br := bufio.NewReader(bytes.NewReader(in))
		var ref *http.Response
		for {
			ref, err = http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("we accept %q, net/http does not: %v", in, err)
			}
			if ref.StatusCode >= 200 || ref.StatusCode == 101 {
				break
			}
		}
		want, err := io.ReadAll(ref.Body)
		if err != nil || status != ref.StatusCode || string(want) != got {
			t.Errorf("%q:\n  we read %d %q\nnet/http %d %q, %v", in, status, got, ref.StatusCode, want, err)
		}
		for _, f := range fields {
			found := false
			for _, v := range ref.Header[f.Name] {
				found = found || strings.Trim(v, " \t") == f.Value
			}
			if !found && f.Name != "Trailer" {
				t.Errorf("field %q of %q: net/http reads %q", f, in, ref.Header[f.Name])
			}
		}
		if n := len(c.idle); n == 1 && c.idle[0].in.buffered() > 0 {
			t.Errorf("an idle connection holds bytes")
		}
	})
}

// FuzzRequest: a request either is refused or arrives at net/http's parser as it was meant.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/a?b", "example.com", "X-A", "1", []byte("body"))
	f.Add("POST", "/\r\nX: 1", "a", "Content-Length", "1", []byte(""))
	f.Add("PUT", "/a b", "a\r\n", "X: y", "1\r\n2", []byte("x"))
	f.Fuzz(func(t *testing.T, method, target, host, name, value string, payload []byte) {
		q := &Request{Method: method, Target: target, Host: host, Fields: []Field{{name, value}}, Payload: payload}
		b, err := q.appendHead(nil, "localhost")
		if err != nil {
			return
		}
		br := bufio.NewReader(bytes.NewReader(append(b, payload...)))
		r, err := http.ReadRequest(br)
		if err != nil {
			return // net/http is stricter about hosts and URLs
		}
		got, _ := io.ReadAll(r.Body)
		if r.Method != method || r.RequestURI != target || !bytes.Equal(got, payload) || br.Buffered() != 0 {
			t.Errorf("%q arrives as %s %q %q, %d bytes left", b, r.Method, r.RequestURI, got, br.Buffered())
		}
		n := len(r.Header)
		for _, own := range []string{"Content-Length"} {
			if _, ok := r.Header[own]; ok {
				n--
			}
		}
		if n != 1 {
			t.Errorf("%q has fields %v, want one", b, r.Header)
		}
	})
}
