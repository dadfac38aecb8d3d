//go:build !no_http2

package http1

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2/hpack"
)

// peer is a client that writes frames and lists those it gets as text, inside a bubble of
// testing/synctest: after wait nothing is on its way.
type peer struct {
	t   *testing.T
	srv *Server
	c   net.Conn
	enc *hpack.Encoder
	buf bytes.Buffer

	mu   sync.Mutex
	got  []string      // guarded by mu
	gate chan struct{} // guarded by mu: read no further frame until it is closed
	stop chan struct{}
	shut func() // no more connections come: sweeps may end
}

// withPeer runs f with a connection whose SETTINGS are exchanged, unless raw.
func withPeer(t *testing.T, like *Server, raw bool, f func(t *testing.T, p *peer)) {
	t.Helper()
	s := &Server{Handler: like.Handler, HTTP2: like.HTTP2, MaxHead: like.MaxHead}
	synctest.Test(t, func(t *testing.T) {
		theirs, ours := net.Pipe()
		s.conns = map[*conn]struct{}{}
		cn := &conn{srv: s, raw: ours, rwc: ours, remote: "192.0.2.1:1"}
		s.track(cn)
		go func() {
			defer s.running.Done()
			defer s.forget(cn)
			cn.serveHTTP2()
		}()
		done := make(chan struct{})
		s.running.Go(func() { s.sweep(done) })
		p := &peer{t: t, srv: s, c: theirs, stop: make(chan struct{}), shut: sync.OnceFunc(func() { close(done) })}
		p.enc = hpack.NewEncoder(&p.buf)
		go p.read()
		if !raw {
			p.write([]byte(preface), frame(frameSettings, 0, 0, nil), frame(frameSettings, flagAck, 0, nil))
			if got := p.wait(); !slices.Contains(got, "SETTINGS ACK") {
				t.Errorf("beginning: %q", got)
			}
		}
		f(t, p)
		theirs.Close()
		s.Close()
		p.shut()
		s.running.Wait()
		<-p.stop
		synctest.Wait()
	})
}

func frame(kind, flags byte, id uint32, payload []byte) []byte {
	return append((*h2conn)(nil).appendFrame(nil, kind, flags, id, len(payload)), payload...)
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// write sends frames in one write; it returns false when the server has hung up.
func (p *peer) write(frames ...[]byte) bool {
	p.c.SetWriteDeadline(time.Now().Add(time.Hour))
	_, err := p.c.Write(slices.Concat(frames...))
	return err == nil
}

// block encodes fields, given as name, value, name, value.
func (p *peer) block(fields ...string) []byte {
	p.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.buf.Bytes())
}

func (p *peer) request(id uint32, end bool, method, path string, more ...string) []byte {
	flags := byte(flagEndHeaders)
	if end {
		flags |= flagEnd
	}
	return frame(frameHeaders, flags, id, p.block(append([]string{":method", method, ":scheme", "https", ":authority", "h", ":path", path}, more...)...))
}

func (p *peer) read() {
	defer close(p.stop)
	var line string
	dec := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name != "date" {
			line += " " + f.Name + "=" + f.Value
		}
	})
	for {
		p.mu.Lock()
		gate := p.gate
		p.mu.Unlock()
		if gate != nil {
			<-gate
		}
		head := make([]byte, frameHead)
		if _, err := io.ReadFull(p.c, head); err != nil {
			p.note("EOF")
			return
		}
		b := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(p.c, b); err != nil {
			p.note("EOF inside a frame")
			return
		}
		id := binary.BigEndian.Uint32(head[5:])
		end := ""
		if head[4]&flagEnd != 0 {
			end = " END"
		}
		switch head[3] {
		case frameData:
			text := string(b)
			if len(b) > 40 {
				text = fmt.Sprint(len(b), " bytes")
			}
			p.note(fmt.Sprintf("DATA %d%s %s", id, end, text))
		case frameHeaders:
			line = fmt.Sprintf("HEADERS %d%s", id, end)
			if _, err := dec.Write(b); err != nil {
				p.t.Error(err)
			}
			p.note(line)
		case frameContinuation:
			p.note(fmt.Sprint("CONTINUATION ", id))
		case frameReset:
			p.note(fmt.Sprintf("RST_STREAM %d %d", id, binary.BigEndian.Uint32(b)))
		case frameSettings:
			if end != "" {
				p.note("SETTINGS ACK")
			} else {
				p.note("SETTINGS")
			}
		case framePing:
			p.note(fmt.Sprintf("PING%s %q", strings.Replace(end, "END", "ACK", 1), b))
		case frameGoAway:
			p.note(fmt.Sprintf("GOAWAY %d %d", binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])))
		case frameWindow:
			p.note(fmt.Sprintf("WINDOW_UPDATE %d %d", id, binary.BigEndian.Uint32(b)))
		}
	}
}

func (p *peer) note(s string) {
	p.mu.Lock()
	p.got = append(p.got, s)
	p.mu.Unlock()
}

// pause makes the peer read nothing after the frame that comes next, until resume.
func (p *peer) pause() (resume func()) {
	gate := make(chan struct{})
	p.mu.Lock()
	p.gate = gate
	p.mu.Unlock()
	return func() {
		p.mu.Lock()
		p.gate = nil
		p.mu.Unlock()
		close(gate)
	}
}

// wait returns what came since the last call.
func (p *peer) wait() []string {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	got := p.got
	p.got = nil
	return got
}

// want fails unless exactly this came since the last call.
func (p *peer) want(what string, frames ...string) {
	p.t.Helper()
	if got := p.wait(); !slices.Equal(got, frames) {
		p.t.Errorf("%s: got %q, want %q", what, got, frames)
	}
}

// hello answers at once, without reading the body.
var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })

// untilGone waits for the end of the request's context.
var untilGone = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })

func TestHTTP2Request(t *testing.T) {
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		w.Header().Set("X-Fields", fmt.Sprint(r.Header))
		fmt.Fprintf(w, "%s %s %s %s %d %q %v %v", r.Method, r.RequestURI, r.Host, r.URL.Path, r.ContentLength, b, err, r.Trailer)
	})}
	withPeer(t, s, false, func(t *testing.T, p *peer) {
		p.write(p.request(1, true, "GET", "/a%20b?c"))
		p.want("plain", "HEADERS 1 :status=200 x-fields=map[] content-length=36", "DATA 1 END GET /a%20b?c h /a b 0 \"\" <nil> map[]")
	})
	withPeer(t, s, false, func(t *testing.T, p *peer) {
		p.write(p.request(1, true, "GET", "/", "cookie", "a=b", "te", "trailers", "cookie", "c=d", "x-y", "1", "x-y", "2", "host", "H"))
		p.want("fields", "HEADERS 1 :status=200 x-fields=map[Cookie:[a=b; c=d] Te:[trailers] X-Y:[1 2]] content-length=26", "DATA 1 END GET / H / 0 \"\" <nil> map[]")
		p.write(frame(frameHeaders, flagEndHeaders|flagEnd|flagPadded|flagPriority, 3, slices.Concat([]byte{3, 0, 0, 0, 0, 9},
			p.block(":method", "OPTIONS", ":scheme", "https", ":path", "*", "host", "h"), []byte("pad"))))
		p.want("padding, priority, no :authority", "HEADERS 3 :status=200 x-fields=map[] content-length=30", "DATA 3 END OPTIONS * h * 0 \"\" <nil> map[]")
		b := p.block(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/")
		p.write(frame(frameHeaders, flagEnd, 5, b[:1]), frame(frameContinuation, 0, 5, b[1:2]), frame(frameContinuation, flagEndHeaders, 5, b[2:]))
		p.want("CONTINUATION", "HEADERS 5 :status=200 x-fields=map[] content-length=26", "DATA 5 END GET / h / 0 \"\" <nil> map[]")
		p.write(p.request(7, false, "POST", "/", "content-length", "3", "trailer", "x-sum"), frame(frameData, flagPadded, 7, []byte("\x02ab__")), frame(frameData, 0, 7, []byte("c")),
			frame(frameHeaders, flagEnd|flagEndHeaders, 7, p.block("x-sum", "7", "content-type", "x")))
		p.want("trailers", "HEADERS 7 :status=200 x-fields=map[Content-Length:[3]] content-length=39", `DATA 7 END POST / h / 3 "abc" <nil> map[X-Sum:[7]]`)
	})
}

// What two parsers could read differently, or not at all, reaches no handler (RFC 9113 §8).
func TestHTTP2Malformed(t *testing.T) {
	s := &Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("reached the handler") })}
	base := func(change ...string) []string {
		f := []string{":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/"}
		for i := 0; i < len(change); i += 2 {
			at := slices.Index(f, change[i])
			switch {
			case at < 0 || at%2 == 1:
				f = append(f, change[i], change[i+1])
			case change[i+1] == "-":
				f = slices.Delete(f, at, at+2)
			default:
				f[at+1] = change[i+1]
			}
		}
		return f
	}
	for name, fields := range map[string][]string{
		"§8.2 upper case":                      base("X-A", "b"),
		"§8.2 upper case, indexed name":        base("Content-Type", "b"),
		"§8.2.1 blank in a name":               base("x a", "b"),
		"§8.2.1 colon in a name":               base("x:a", "b"),
		"§8.2.1 empty name":                    base("", "b"),
		"§8.2.1 CR LF in a value":              base("x-a", "b\r\nx: y"),
		"§8.2.1 NUL in a value":                base("x-a", "b\x00"),
		"§8.2.1 blank before a value":          base("x-a", " b"),
		"§8.2.1 blank after a value":           base("x-a", "b\t"),
		"§8.2.2 connection":                    base("connection", "x-a"),
		"§8.2.2 transfer-encoding":             base("transfer-encoding", "chunked"),
		"§8.2.2 upgrade":                       base("upgrade", "websocket"),
		"§8.2.2 keep-alive":                    base("keep-alive", "1"),
		"§8.2.2 proxy-connection":              base("proxy-connection", "x"),
		"§8.2.2 te":                            base("te", "gzip"),
		"§8.3 unknown pseudo":                  base(":x", "y"),
		"§8.3 :status":                         base(":status", "200"),
		"§8.3 :protocol, which is not offered": base(":protocol", "websocket"),
		"§8.3 pseudo after a field":            {":method", "GET", ":scheme", "https", "x-a", "b", ":authority", "h", ":path", "/"},
		"§8.3 pseudo after cookies":            {":method", "GET", ":scheme", "https", "cookie", "b", "cookie", "c", ":authority", "h", ":path", "/"},
		"§8.3 pseudo twice":                    {":method", "GET", ":method", "POST", ":scheme", "https", ":authority", "h", ":path", "/"},
		"§8.3.1 no method":                     base(":method", "-"),
		"§8.3.1 method of two words":           base(":method", "GET /admin"),
		"§8.3.1 no scheme":                     base(":scheme", "-"),
		"§8.3.1 other scheme":                  base(":scheme", "ftp"),
		"§8.3.1 no path":                       base(":path", "-"),
		"§8.3.1 empty path":                    base(":path", ""),
		"§8.3.1 relative path":                 base(":path", "a"),
		"§8.3.1 absolute form":                 base(":path", "http://h/"),
		"§8.3.1 blank in the path":             base(":path", "/ HTTP/1.1"),
		"§8.3.1 line break in the path":        base(":path", "/\r\n"),
		"§8.3.1 fragment":                      base(":path", "/a?b#c"),
		"§8.3.1 bad escape":                    base(":path", "/%zz"),
		"§8.3.1 asterisk for GET":              base(":path", "*"),
		"§8.3.1 two hosts":                     base("host", "other"),
		"§8.3.1 host twice":                    append(base(), "host", "h", "host", "h"),
		"§8.3.1 no host":                       base(":authority", "-"),
		"§8.3.1 bad host":                      base(":authority", "u@h"),
		"§8.1.1 length without a body":         base("content-length", "3"),
		"§8.1.1 malformed length":              base("content-length", "+3"),
		"§8.1.1 length twice":                  append(base("content-length", "0"), "content-length", "0"),
	} {
		t.Run(name, func(t *testing.T) {
			withPeer(t, s, false, func(t *testing.T, p *peer) {
				p.write(frame(frameHeaders, flagEnd|flagEndHeaders, 1, p.block(fields...)))
				p.want("answer", "RST_STREAM 1 1")
			})
		})
	}
}

// Frames that break the rules end the connection, and say why (RFC 9113 §5.4.1).
func TestHTTP2Broken(t *testing.T) {
	setting := func(id byte, v uint32) []byte { return frame(frameSettings, 0, 0, append([]byte{0, id}, u32(v)...)) }
	for name, c := range map[string]struct {
		code   int
		frames func(p *peer) []byte
	}{
		"§4.1 type of a stream without one": {codeProtocol, func(p *peer) []byte { return frame(frameData, 0, 0, nil) }},
		"§4.1 HEADERS without a stream":     {codeProtocol, func(p *peer) []byte { return frame(frameHeaders, flagEndHeaders, 0, nil) }},
		"§6.5 SETTINGS on a stream":         {codeProtocol, func(p *peer) []byte { return frame(frameSettings, 0, 3, nil) }},
		"§6.7 PING on a stream":             {codeProtocol, func(p *peer) []byte { return frame(framePing, 0, 3, make([]byte, 8)) }},
		"§4.2 too large":                    {codeFrameSize, func(p *peer) []byte { return frame(0x77, 0, 0, make([]byte, maxFrame+1))[:frameHead] }},
		"§4.3 malformed block":              {codeCompression, func(p *peer) []byte { return frame(frameHeaders, flagEnd|flagEndHeaders, 3, []byte{0x80}) }},
		"§5.1 DATA on an idle stream":       {codeProtocol, func(p *peer) []byte { return frame(frameData, 0, 9, []byte("x")) }},
		"§5.1 RST_STREAM of an idle stream": {codeProtocol, func(p *peer) []byte { return frame(frameReset, 0, 9, u32(8)) }},
		"§5.1 WINDOW_UPDATE of an idle one": {codeProtocol, func(p *peer) []byte { return frame(frameWindow, 0, 9, u32(8)) }},
		"§5.1 DATA after the end":           {codeClosed, func(p *peer) []byte { return append(p.request(3, true, "GET", "/"), frame(frameData, 0, 3, nil)...) }},
		"§5.1 HEADERS after the end":        {codeClosed, func(p *peer) []byte { return append(p.request(3, true, "GET", "/"), p.request(3, true, "GET", "/")...) }},
		"§5.1.1 an even stream":             {codeProtocol, func(p *peer) []byte { return p.request(2, true, "GET", "/") }},
		"§5.1.1 a lower stream":             {codeClosed, func(p *peer) []byte { return append(p.request(5, true, "GET", "/"), p.request(3, true, "GET", "/")...) }},
		"§6.1 padding longer than DATA":     {codeProtocol, func(p *peer) []byte { return frame(frameData, flagPadded, 1, []byte{3, 0}) }},
		"§6.2 padding longer than HEADERS":  {codeProtocol, func(p *peer) []byte { return frame(frameHeaders, flagPadded|flagEndHeaders, 3, []byte{9, 0}) }},
		"§6.2 no room for the priority":     {codeFrameSize, func(p *peer) []byte { return frame(frameHeaders, flagPriority|flagEndHeaders, 3, []byte{0, 0}) }},
		"§6.3 PRIORITY of 4 bytes":          {codeFrameSize, func(p *peer) []byte { return frame(framePriority, 0, 3, u32(0)) }},
		"§6.4 RST_STREAM of 5 bytes":        {codeFrameSize, func(p *peer) []byte { return frame(frameReset, 0, 1, make([]byte, 5)) }},
		"§6.5 SETTINGS of 5 bytes":          {codeFrameSize, func(p *peer) []byte { return frame(frameSettings, 0, 0, make([]byte, 5)) }},
		"§6.5 SETTINGS ACK with a payload":  {codeFrameSize, func(p *peer) []byte { return frame(frameSettings, flagAck, 0, make([]byte, 6)) }},
		"§6.5.2 ENABLE_PUSH of 2":           {codeProtocol, func(p *peer) []byte { return setting(settingPush, 2) }},
		"§6.5.2 window too large":           {codeFlow, func(p *peer) []byte { return setting(settingWindow, maxWindow+1) }},
		"§6.5.2 frames too small":           {codeProtocol, func(p *peer) []byte { return setting(settingFrame, maxFrame-1) }},
		"§6.9.2 window of a stream too large": {codeFlow, func(p *peer) []byte {
			return append(frame(frameWindow, 0, 1, u32(1<<30)), setting(settingWindow, maxWindow)...)
		}},
		"§6.6 PUSH_PROMISE":        {codeProtocol, func(p *peer) []byte { return frame(framePush, flagEndHeaders, 1, u32(2)) }},
		"§6.7 PING of 7 bytes":     {codeFrameSize, func(p *peer) []byte { return frame(framePing, 0, 0, make([]byte, 7)) }},
		"§6.9 WINDOW_UPDATE of 0":  {codeProtocol, func(p *peer) []byte { return frame(frameWindow, 0, 0, u32(0)) }},
		"§6.9.1 window too large":  {codeFlow, func(p *peer) []byte { return frame(frameWindow, 0, 0, u32(maxWindow)) }},
		"§6.10 CONTINUATION alone": {codeProtocol, func(p *peer) []byte { return frame(frameContinuation, flagEndHeaders, 1, nil) }},
		"§6.10 CONTINUATION of another": {codeProtocol, func(p *peer) []byte {
			return append(frame(frameHeaders, flagEnd, 3, nil), frame(frameContinuation, flagEndHeaders, 5, nil)...)
		}},
		"§6.10 DATA inside a block":         {codeProtocol, func(p *peer) []byte { return append(frame(frameHeaders, 0, 3, nil), frame(frameData, 0, 3, nil)...) }},
		"§6.10 unknown type inside a block": {codeProtocol, func(p *peer) []byte { return append(frame(frameHeaders, 0, 3, nil), frame(0x77, 0, 3, nil)...) }},
	} {
		t.Run(name, func(t *testing.T) {
			withPeer(t, &Server{Handler: untilGone}, false, func(t *testing.T, p *peer) {
				p.write(p.request(1, false, "POST", "/"))
				p.write(c.frames(p))
				time.Sleep(lingerPeriod + 2*tick)
				got := p.wait()
				if len(got) < 2 || !strings.HasPrefix(got[len(got)-2], "GOAWAY") || !strings.HasSuffix(got[len(got)-2], fmt.Sprint(" ", c.code)) || got[len(got)-1] != "EOF" {
					t.Errorf("got %q, want GOAWAY with code %d, and the end", got, c.code)
				}
			})
		})
	}
}

// Requests that are well-formed, but not served, are told why, as over HTTP/1.1.
func TestHTTP2Refused(t *testing.T) {
	s := &Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("reached the handler") })}
	many := []string{}
	for range maxFields + 1 {
		many = append(many, "x", "y")
	}
	for _, c := range []struct {
		status int
		method string
		path   string
		more   []string
	}{
		{414, "GET", "/" + strings.Repeat("a", maxTarget), nil},
		{431, "GET", "/", many},
		{431, "GET", "/", []string{"x", strings.Repeat("abc", 11<<10)}},
		{405, "CONNECT", "/", nil},
		{417, "POST", "/", []string{"expect", "x"}},
	} {
		withPeer(t, s, false, func(t *testing.T, p *peer) {
			flags, b := byte(flagEndHeaders), p.block(append([]string{":method", c.method, ":scheme", "https", ":authority", "h", ":path", c.path}, c.more...)...)
			if c.method != "POST" {
				flags |= flagEnd
			}
			p.write(frame(frameHeaders, flags&^flagEndHeaders, 1, nil))
			for len(b) > maxFrame {
				p.write(frame(frameContinuation, 0, 1, b[:maxFrame]))
				b = b[maxFrame:]
			}
			p.write(frame(frameContinuation, flagEndHeaders, 1, b))
			got := p.wait()
			if len(got) < 2 || !strings.HasPrefix(got[0], fmt.Sprintf("HEADERS 1 :status=%d content-type=application/json", c.status)) || (c.method == "POST") != (len(got) == 3 && got[2] == "RST_STREAM 1 0") {
				t.Errorf("%d: %q", c.status, got)
			}
			p.write(p.request(3, true, "CONNECT", "/")) // the connection, and its table, go on
			if got := p.wait(); len(got) != 2 || !strings.HasPrefix(got[0], "HEADERS 3 :status=405") {
				t.Errorf("after %d: %q", c.status, got)
			}
		})
	}
}

// The body must be as long as Content-Length says (RFC 9113 §8.1.1), and a handler never
// takes a part for the whole.
func TestHTTP2Length(t *testing.T) {
	var got error
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, got = io.ReadAll(r.Body) })}
	for name, frames := range map[string][][]byte{
		"short":              {frame(frameData, flagEnd, 1, []byte("ab"))},
		"long":               {frame(frameData, 0, 1, []byte("abc")), frame(frameData, flagEnd, 1, []byte("d"))},
		"long, more to come": {frame(frameData, 0, 1, []byte("abcd"))},
		"short by trailers":  {frame(frameData, 0, 1, []byte("ab")), frame(frameHeaders, flagEnd|flagEndHeaders, 1, []byte{0, 1, 'x', 1, 'y'})},
	} {
		withPeer(t, s, false, func(t *testing.T, p *peer) {
			got = nil
			p.write(append([][]byte{p.request(1, false, "POST", "/", "content-length", "3")}, frames...)...)
			p.want(name, "RST_STREAM 1 1")
			if got == nil {
				t.Errorf("%s: the handler read it as whole", name)
			}
		})
	}
	for name, trailer := range map[string][]byte{"pseudo": {0x82}, "not the end": nil} {
		withPeer(t, s, false, func(t *testing.T, p *peer) {
			flags := byte(flagEndHeaders)
			if trailer != nil {
				flags |= flagEnd
			}
			p.write(p.request(1, false, "POST", "/"), frame(frameHeaders, flags, 1, trailer))
			p.want("trailers: "+name, "RST_STREAM 1 1")
		})
	}
}

func TestHTTP2Answer(t *testing.T) {
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		switch r.URL.Path {
		case "/big":
			w.Write(make([]byte, 20_000))
		case "/204":
			h.Set("Content-Length", "3")
			w.WriteHeader(204)
			if _, err := io.WriteString(w, "x"); err != http.ErrBodyNotAllowed {
				t.Errorf("a body with 204: %v", err)
			}
		case "/304":
			h.Set("Content-Length", "3")
			w.WriteHeader(304)
		case "/length":
			h.Set("Content-Length", "5")
			io.WriteString(w, "he")
			io.WriteString(w, "llo")
			if _, err := io.WriteString(w, "!"); err != http.ErrContentLength {
				t.Errorf("more than Content-Length: %v", err)
			}
		case "/short":
			h.Set("Content-Length", "5")
			io.WriteString(w, "he")
		case "/flush":
			io.WriteString(w, "a")
			w.(http.Flusher).Flush()
			io.WriteString(w, "b")
		case "/trailers":
			h.Set("Trailer", "X-A, Content-Length")
			io.WriteString(w, "body")
			h.Set("X-A", "1")
			h.Set(http.TrailerPrefix+"X-B", "2")
			h.Set(http.TrailerPrefix+"Content-Type", "x") // not behind a body (RFC 9110 §6.5.1)
		case "/interim":
			h.Set("Link", "</a>")
			w.WriteHeader(103)
			h.Del("Link")
			io.WriteString(w, "x")
		case "/abort":
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/split":
			h["X-Evil"] = []string{"a\r\nb"}
			h["Bad Name"] = []string{"v"}
			h.Set("Connection", "x")
			h.Set("Transfer-Encoding", "chunked")
			h.Set("Upgrade", "y")
			h.Set("Keep-Alive", "z")
		case "/flushed":
			w.WriteHeader(204)
			w.(http.Flusher).Flush()
		case "/head":
			h.Set("X-Large", strings.Repeat("x", 20_000))
		}
	})}
	get := func(method, path string, want ...string) {
		t.Helper()
		withPeer(t, s, false, func(t *testing.T, p *peer) {
			p.write(p.request(1, true, method, path))
			p.want(method+" "+path, want...)
		})
	}
	get("GET", "/nothing", "HEADERS 1 END :status=200 content-length=0")
	get("GET", "/big", "HEADERS 1 :status=200", "DATA 1 16332 bytes", "DATA 1 3668 bytes", "DATA 1 END ")
	get("HEAD", "/big", "HEADERS 1 END :status=200")
	get("GET", "/204", "HEADERS 1 END :status=204")
	get("GET", "/304", "HEADERS 1 END :status=304 content-length=3")
	get("GET", "/length", "HEADERS 1 :status=200 content-length=5", "DATA 1 END hello")
	get("HEAD", "/length", "HEADERS 1 END :status=200 content-length=5")
	get("GET", "/short", "RST_STREAM 1 2")
	get("GET", "/flushed", "HEADERS 1 END :status=204")
	get("HEAD", "/flush", "HEADERS 1 END :status=200")
	get("GET", "/flush", "HEADERS 1 :status=200", "DATA 1 a", "DATA 1 END b")
	get("GET", "/trailers", "HEADERS 1 :status=200 trailer=X-A, Content-Length content-length=4", "DATA 1 body", "HEADERS 1 END x-a=1 x-b=2")
	get("GET", "/interim", "HEADERS 1 :status=103 link=</a>", "HEADERS 1 :status=200 content-length=1", "DATA 1 END x")
	get("GET", "/abort", "HEADERS 1 :status=200", "DATA 1 x", "RST_STREAM 1 2")
	get("GET", "/split", "HEADERS 1 END :status=200 content-length=0")
	withPeer(t, s, false, func(t *testing.T, p *peer) {
		p.write(p.request(1, true, "GET", "/head"))
		if got := p.wait(); len(got) != 2 || got[1] != "CONTINUATION 1" {
			t.Errorf("large head: %.80q", got)
		}
	})
}

// The client waits for 100 Continue until the handler reads (RFC 9110 §10.1.1).
func TestHTTP2Continue(t *testing.T) {
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/read" {
			b, _ := io.ReadAll(r.Body)
			w.Write(b)
		}
	})}
	withPeer(t, s, false, func(t *testing.T, p *peer) {
		p.write(p.request(1, false, "POST", "/read", "expect", "100-continue"))
		p.want("read", "HEADERS 1 :status=100")
		p.write(frame(frameData, flagEnd, 1, []byte("x")))
		p.want("answer", "HEADERS 1 :status=200 content-length=1", "DATA 1 END x")
		p.write(p.request(3, false, "POST", "/", "expect", "100-continue"))
		p.want("not read", "HEADERS 3 END :status=200 content-length=0", "RST_STREAM 3 0")
		p.write(frame(frameData, flagEnd, 3, []byte("late"))) // was on its way
		p.want("late body")
	})
}

// Windows are given back only as the handler reads (RFC 9113 §6.9).
func TestHTTP2UploadWindow(t *testing.T) {
	read := make(chan int)
	s := &Server{HTTP2: http.HTTP2Config{MaxReceiveBufferPerStream: 1 << 17, MaxReceiveBufferPerConnection: 1 << 18}}
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for n := range read {
			io.ReadFull(r.Body, make([]byte, n))
		}
	})
	data := func(id uint32, n int) []byte {
		var b []byte
		for ; n > 0; n -= maxFrame {
			b = append(b, frame(frameData, 0, id, make([]byte, min(n, maxFrame)))...)
		}
		return b
	}
	withPeer(t, s, false, func(t *testing.T, p *peer) {
		read = make(chan int)
		p.write(p.request(1, false, "POST", "/"), data(1, 1<<17))
		p.want("unread")
		read <- 1<<16 - 1
		p.want("not yet half")
		read <- 1
		p.want("half", "WINDOW_UPDATE 0 65536", "WINDOW_UPDATE 1 65536")
		p.write(data(1, 1<<16))
		p.want("full again")
		if p.write(frame(frameData, 0, 1, []byte("x"))); !slices.Contains(p.wait(), "GOAWAY 1 3") {
			t.Error("more than the window was taken")
		}
		close(read)
	})
	withPeer(t, s, false, func(t *testing.T, p *peer) { // more than the connection's window, but less than the streams'
		read = make(chan int)
		p.write(p.request(1, false, "POST", "/"), p.request(3, false, "POST", "/"), p.request(5, false, "POST", "/"), data(1, 100_000), data(3, 100_000), data(5, 1<<18-200_000))
		p.want("full")
		if p.write(frame(frameData, 0, 5, []byte("x"))); !slices.Contains(p.wait(), "GOAWAY 5 3") {
			t.Error("more than the connection's window was taken")
		}
		close(read)
	})
	withPeer(t, s, false, func(t *testing.T, p *peer) { // the room of what was cancelled
		read = make(chan int)
		p.write(p.request(1, false, "POST", "/"), p.request(3, false, "POST", "/"), p.request(5, false, "POST", "/"), data(1, 1<<17), data(3, 1<<17))
		p.want("unread")
		p.write(frame(frameReset, 0, 1, u32(codeCancel)))
		p.want("a cancelled request needs no room", "WINDOW_UPDATE 0 131072")
		p.write(data(5, 1<<17))
		p.want("filled again")
		if p.write(frame(frameData, 0, 3, []byte("x"))); !slices.Contains(p.wait(), "GOAWAY 5 3") {
			t.Error("more than the window was taken")
		}
		close(read)
	})
}

// Padding takes room of the windows too, and gives it back at once. Until the client knows
// its windows, it may use those of RFC 9113 §6.9.2.
func TestHTTP2SmallWindow(t *testing.T) {
	s := &Server{HTTP2: http.HTTP2Config{MaxReceiveBufferPerStream: 1000}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/read" {
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, err)
		} else {
			<-r.Context().Done()
		}
	})}
	withPeer(t, s, false, func(t *testing.T, p *peer) {
		p.write(p.request(1, false, "POST", "/read"))
		for range 1000 {
			p.write(frame(frameData, flagPadded, 1, append([]byte{255, 'x'}, make([]byte, 255)...)))
		}
		p.write(frame(frameData, flagEnd, 1, nil))
		if got := p.wait(); !slices.Contains(got, "DATA 1 END 1000 <nil>") {
			t.Errorf("padded: %.300q", got)
		}
		p.write(p.request(3, false, "POST", "/"), frame(frameData, 0, 3, make([]byte, 1000)))
		p.want("all that may come")
		if p.write(frame(frameData, 0, 3, []byte("x"))); !slices.Contains(p.wait(), "GOAWAY 3 3") {
			t.Error("more than the window was taken")
		}
	})
	withPeer(t, s, true, func(t *testing.T, p *peer) { // no ACK yet
		p.write([]byte(preface), frame(frameSettings, 0, 0, nil), p.request(1, false, "POST", "/"))
		p.wait()
		for range 3 {
			p.write(frame(frameData, 0, 1, make([]byte, maxFrame)))
		}
		p.want("early data")
		p.write(frame(frameSettings, flagAck, 0, nil))
		p.want("ACK")
	})
}

// Answers wait for the client's windows (RFC 9113 §6.9).
func TestHTTP2DownloadWindow(t *testing.T) {
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.Write(make([]byte, 100))
	})}
	withPeer(t, s, false, func(t *testing.T, p *peer) {
		window := func(n uint32) []byte { return frame(frameSettings, 0, 0, append([]byte{0, settingWindow}, u32(n)...)) }
		p.write(window(0))
		p.want("settings", "SETTINGS ACK")
		p.write(p.request(1, true, "GET", "/"))
		p.want("no window", "HEADERS 1 :status=200 content-length=100")
		p.write(frame(frameWindow, 0, 1, u32(10)))
		p.want("a small one", "DATA 1 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
		p.write(window(60))
		p.want("SETTINGS raise it", "SETTINGS ACK", "DATA 1 60 bytes")
		p.write(window(0))
		p.want("below zero", "SETTINGS ACK")
		p.write(frame(frameWindow, 0, 1, u32(60)))
		p.want("still nothing")
		p.write(frame(frameWindow, 0, 1, u32(1000)))
		p.want("the rest", "DATA 1 END \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	})
	var release chan struct{}
	withPeer(t, &Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release })}, false, func(t *testing.T, p *peer) {
		release = make(chan struct{})
		defer func() { close(release) }()
		p.write(p.request(1, true, "GET", "/"), frame(frameWindow, 0, 1, u32(maxWindow)))
		p.want("more than 2^31-1", "RST_STREAM 1 3")
		p.write(frame(frameWindow, 0, 1, u32(1)), frame(frameSettings, 0, 0, append([]byte{0, settingWindow}, u32(maxWindow)...)))
		p.want("others go on", "SETTINGS ACK")
	})
}

// A request's context ends when the client cancels it or goes away.
func TestHTTP2ClientGone(t *testing.T) {
	var readErr, ctxErr, writeErr error
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, readErr = io.ReadAll(r.Body)
		<-r.Context().Done()
		ctxErr = r.Context().Err()
		_, writeErr = w.Write(make([]byte, 1<<20))
	})}
	for name, end := range map[string]func(p *peer){
		"cancelled": func(p *peer) { p.write(frame(frameReset, 0, 1, u32(codeCancel))) },
		"hung up":   func(p *peer) { p.c.Close() },
	} {
		withPeer(t, s, false, func(t *testing.T, p *peer) {
			p.write(p.request(1, false, "POST", "/"), frame(frameData, 0, 1, []byte("part")))
			p.want(name)
			end(p)
			p.wait()
			if readErr == nil || ctxErr == nil || writeErr == nil {
				t.Errorf("%s: read %v, context %v, write %v, want errors", name, readErr, ctxErr, writeErr)
			}
		})
	}
}

// http.ResponseController, as the packages that use this server use it.
func TestHTTP2Deadlines(t *testing.T) {
	var got []string
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		switch r.URL.Path {
		case "/read":
			rc.SetReadDeadline(time.Now().Add(3 * time.Second))
			began := time.Now()
			_, err := r.Body.Read(make([]byte, 9))
			got = append(got, fmt.Sprint(errors.Is(err, os.ErrDeadlineExceeded), time.Since(began)))
			time.AfterFunc(time.Second, func() { rc.SetReadDeadline(time.Unix(1, 0)) })
			rc.SetReadDeadline(time.Time{})
			_, err = r.Body.Read(make([]byte, 9))
			got = append(got, fmt.Sprint(errors.Is(err, os.ErrDeadlineExceeded), time.Since(began)))
			rc.SetReadDeadline(time.Now().Add(time.Minute)) // it is not for good
			n, err := r.Body.Read(make([]byte, 9))
			got = append(got, fmt.Sprint(n, err))
		case "/write":
			w.WriteHeader(200)
			rc.Flush()
			rc.SetWriteDeadline(time.Now().Add(3 * time.Second))
			began := time.Now()
			_, err := w.Write(make([]byte, 1<<20))
			got = append(got, fmt.Sprint(errors.Is(err, os.ErrDeadlineExceeded), time.Since(began), r.Context().Err()))
		case "/idle": // nothing is written
			rc.Flush()
			rc.SetWriteDeadline(time.Now().Add(time.Second))
			<-r.Context().Done()
		case "/past":
			time.AfterFunc(time.Hour, func() { rc.SetWriteDeadline(time.Unix(1, 0)) })
			<-r.Context().Done()
		}
		if _, _, err := rc.Hijack(); !errors.Is(err, http.ErrNotSupported) {
			t.Errorf("Hijack = %v", err)
		}
	})}
	withPeer(t, s, false, func(t *testing.T, p *peer) {
		p.write(p.request(1, false, "POST", "/read"))
		time.Sleep(10 * time.Second)
		p.write(frame(frameData, flagEnd, 1, []byte("abc")))
		p.wait()
		if want := []string{"true 3s", "true 4s", "3 <nil>"}; !slices.Equal(got, want) {
			t.Errorf("reads: %q, want %q", got, want)
		}
		got = nil
		p.write(p.request(3, true, "GET", "/write"))
		time.Sleep(10 * time.Second)
		frames := p.wait()
		if want := []string{"true 3s context canceled"}; !slices.Equal(got, want) || frames[len(frames)-1] != "RST_STREAM 3 8" {
			t.Errorf("write: %q, want %q; %q", got, want, frames)
		}
		p.write(p.request(5, true, "GET", "/idle"))
		time.Sleep(2 * time.Second)
		p.want("idle", "HEADERS 5 :status=200", "RST_STREAM 5 8")
		p.write(p.request(7, true, "GET", "/past"))
		time.Sleep(time.Hour + time.Second)
		p.want("past", "RST_STREAM 7 8")
	})
}

// A stream of events is not cut by any limit in time, and needs no request beside it.
func TestHTTP2Events(t *testing.T) {
	s := &Server{HTTP2: http.HTTP2Config{SendPingTimeout: 30 * time.Second}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			time.Sleep(8 * time.Hour)
		}
	})}
	withPeer(t, s, false, func(t *testing.T, p *peer) {
		p.write(p.request(1, true, "GET", "/"))
		p.want("head", "HEADERS 1 :status=200", "DATA 1 data: 0\n\n")
		for i := range 2 {
			for range 8 * 60 * 2 { // answers every PING
				time.Sleep(30 * time.Second)
				if got := p.wait(); len(got) > 0 && strings.HasPrefix(got[0], "PING") {
					p.write(frame(framePing, flagAck, 0, make([]byte, 8)))
				} else if len(got) > 0 {
					if want := fmt.Sprintf("DATA 1 data: %d\n\n", i+1); got[len(got)-1] != want {
						t.Errorf("got %q, want %q", got, want)
					}
				}
			}
		}
	})
}

// Shutdown tells twice: first that nothing new may come, then what was the last request
// (RFC 9113 §6.8). What was on its way between is served.
func TestHTTP2Shutdown(t *testing.T) {
	release := make(chan struct{})
	s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-release
		io.WriteString(w, "done")
	})}
	withPeer(t, s, false, func(t *testing.T, p *peer) {
		release = make(chan struct{})
		p.write(p.request(1, true, "GET", "/"))
		ended := make(chan error, 1)
		go func() { ended <- p.srv.Shutdown(t.Context()) }()
		synctest.Wait()
		p.shut()
		p.want("first", "GOAWAY 2147483647 0", `PING "drain\x00\x00\x00"`)
		p.write(p.request(3, true, "GET", "/"))
		p.want("on its way")
		p.write(frame(framePing, flagAck, 0, drainPing[:]))
		p.want("second", "GOAWAY 3 0")
		p.write(p.request(5, true, "GET", "/"), p.request(7, false, "POST", "/"), frame(frameData, flagEnd, 7, []byte("x")))
		p.want("too late")
		close(release)
		got := p.wait()
		slices.Sort(got)
		if want := []string{"DATA 1 END done", "DATA 3 END done", "HEADERS 1 :status=200 content-length=4", "HEADERS 3 :status=200 content-length=4"}; !slices.Equal(got, want) {
			t.Errorf("answers: %q, want %q", got, want)
		}
		p.c.Close()
		if err := <-ended; err != nil {
			t.Errorf("Shutdown = %v", err)
		}
	})
	s = &Server{Handler: hello}
	withPeer(t, s, false, func(t *testing.T, p *peer) { // nothing under way, and a client that does not answer
		ended := make(chan error, 1)
		go func() { ended <- p.srv.Shutdown(t.Context()) }()
		synctest.Wait()
		p.shut()
		if err := <-ended; err != nil {
			t.Errorf("Shutdown = %v", err)
		}
		p.want("idle", "GOAWAY 2147483647 0", `PING "drain\x00\x00\x00"`, "GOAWAY 0 0", "EOF")
	})
}
