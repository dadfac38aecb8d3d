//go:build !no_http2

package http1

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// serveH2 serves HTTP/2 on loopback: ours, or net/http's for comparison.
func serveH2(t testing.TB, h http.Handler, ours bool) (url string, client *http.Client) {
	t.Helper()
	conf := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, NextProtos: []string{"h2"}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	var end func() error
	if ours {
		s := &Server{Handler: h, TLS: conf}
		go func() { served <- s.Serve(l) }()
		end = func() error { defer s.running.Wait(); return s.Close() }
	} else {
		s := &http.Server{Handler: h, TLSConfig: conf}
		go func() { served <- s.ServeTLS(l, "", "") }()
		end = s.Close
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true, ExpectContinueTimeout: patience, DisableCompression: true}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		end()
		<-served
	})
	return "https://" + l.Addr().String(), &http.Client{Transport: tr, Timeout: 2 * patience}
}

// A handler finds with this server what it finds with net/http's, and its client too.
func TestHTTP2LikeNetHTTP(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		switch r.URL.Path {
		case "/request":
			fmt.Fprint(w, r.Method, r.URL, r.Host == "h.example", r.RequestURI, r.Proto, r.ProtoMajor, r.ContentLength, r.Header, r.Close, r.TransferEncoding, r.TLS != nil, r.Trailer)
		case "/echo":
			b, err := io.ReadAll(r.Body)
			w.Header().Set("X-Trailer", fmt.Sprint(r.Trailer))
			fmt.Fprint(w, len(b), err, bytes.Count(b, []byte("x")))
		case "/duplex":
			w.WriteHeader(200)
			rc.Flush()
			buf := make([]byte, 1000)
			for {
				n, err := r.Body.Read(buf)
				w.Write(buf[:n])
				rc.Flush()
				if err != nil {
					return
				}
			}
		case "/large":
			for i := range 300 {
				w.Write(bytes.Repeat([]byte{byte(i)}, 10_007))
			}
		case "/trailers":
			w.Header().Set("Trailer", "X-A")
			io.WriteString(w, "body")
			rc.Flush()
			w.Header().Set("X-A", "1")
			w.Header().Set(http.TrailerPrefix+"x-b", "2")
		case "/early":
			w.Header().Add("Link", "</style.css>")
			w.WriteHeader(103)
			w.WriteHeader(200)
			w.WriteHeader(500)
			io.WriteString(w, "late")
		case "/status":
			var n int
			fmt.Sscan(r.URL.RawQuery, &n)
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(n)
		case "/length":
			w.Header().Set("Content-Length", "4")
			io.WriteString(w, "four")
		case "/short":
			w.Header().Set("Content-Length", "9")
			io.WriteString(w, "four")
		case "/abort":
			io.WriteString(w, "part")
			rc.Flush()
			panic(http.ErrAbortHandler)
		case "/cookies":
			http.SetCookie(w, &http.Cookie{Name: "a", Value: "1"})
			http.SetCookie(w, &http.Cookie{Name: "b", Value: "2"})
			fmt.Fprint(w, r.Cookies())
		case "/close":
			w.Header().Set("Connection", "close")
		case "/unread":
			io.WriteString(w, "no thanks")
		}
	})
	ask := func(base string, c *http.Client, method, path string, body io.Reader, edit func(*http.Request)) string {
		var told []string
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got100Continue: func() { told = append(told, "100") },
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error { told = append(told, fmt.Sprint(code, h)); return nil },
		})
		r, err := http.NewRequestWithContext(ctx, method, base+path, body)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "h.example"
		if edit != nil {
			edit(r)
		}
		resp, err := c.Do(r)
		if err != nil {
			return "failed"
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if _, ok := resp.Header["Date"]; !ok {
			t.Errorf("%s %s: no Date", method, path)
		}
		resp.Header.Del("Date")
		resp.Header.Del("Content-Type") // net/http guesses it
		if len(b) > 200 {
			b = fmt.Append(nil, len(b), " bytes, crc ", bytes.Count(b, []byte{7}))
		}
		return fmt.Sprintf("%v %s %d %v %q %v trailer=%v", told, resp.Proto, resp.StatusCode, resp.Header, b, err != nil, resp.Trailer)
	}
	ourURL, ourClient := serveH2(t, h, true)
	url, client := serveH2(t, h, false)
	for name, c := range map[string]struct {
		method, path string
		body         func() io.Reader
		edit         func(*http.Request)
	}{
		"GET":           {method: "GET", path: "/request?a=b&c=%20"},
		"escapes":       {method: "GET", path: "/request/../a%2Fb/%C3%A4//x"},
		"fields":        {method: "GET", path: "/request", edit: func(r *http.Request) { r.Header["X-A"] = []string{"1", "2", ""}; r.Header.Set("Te", "trailers") }},
		"POST":          {method: "POST", path: "/request", body: func() io.Reader { return strings.NewReader("abc") }},
		"POST, no size": {method: "POST", path: "/request", body: func() io.Reader { return io.MultiReader(strings.NewReader("abc")) }},
		"empty POST":    {method: "POST", path: "/request", body: func() io.Reader { return http.NoBody }},
		"OPTIONS *":     {method: "OPTIONS", path: "/request", edit: func(r *http.Request) { r.URL.Opaque = "*" }},
		"echo small":    {method: "PUT", path: "/echo", body: func() io.Reader { return strings.NewReader("xyx") }},
		"echo large":    {method: "PUT", path: "/echo", body: func() io.Reader { return bytes.NewReader(bytes.Repeat([]byte("x"), 3_000_000)) }},
		"echo trailers": {method: "PUT", path: "/echo", body: func() io.Reader { return io.MultiReader(strings.NewReader("xx")) }, edit: func(r *http.Request) { r.Trailer = http.Header{"X-Sum": {"2"}} }},
		"continue":      {method: "PUT", path: "/echo", body: func() io.Reader { return strings.NewReader("xxx") }, edit: func(r *http.Request) { r.Header.Set("Expect", "100-continue") }},
		"duplex":        {method: "PUT", path: "/duplex", body: func() io.Reader { return bytes.NewReader(bytes.Repeat([]byte("x"), 300_000)) }},
		"large":         {method: "GET", path: "/large"},
		"HEAD large":    {method: "HEAD", path: "/large"},
		"trailers":      {method: "GET", path: "/trailers"},
		"103":           {method: "GET", path: "/early"},
		"204":           {method: "GET", path: "/status?204"},
		"304":           {method: "GET", path: "/status?304"},
		"404":           {method: "GET", path: "/status?404"},
		"799":           {method: "GET", path: "/status?799"},
		"length":        {method: "GET", path: "/length"},
		"HEAD length":   {method: "HEAD", path: "/length"},
		"short":         {method: "GET", path: "/short"},
		"abort":         {method: "GET", path: "/abort"},
		"cookies":       {method: "GET", path: "/cookies", edit: func(r *http.Request) { r.Header.Set("Cookie", "a=1; b=2; c=3") }},
		"close":         {method: "GET", path: "/close"},
		"unread":        {method: "POST", path: "/unread", body: func() io.Reader { return bytes.NewReader(make([]byte, 10)) }},
		"unread large":  {method: "POST", path: "/unread", body: func() io.Reader { return bytes.NewReader(make([]byte, 1_000_000)) }},
		"nothing":       {method: "GET", path: "/nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			body := func() io.Reader {
				if c.body == nil {
					return nil
				}
				return c.body()
			}
			got, want := ask(ourURL, ourClient, c.method, c.path, body(), c.edit), ask(url, client, c.method, c.path, body(), c.edit)
			if name == "short" { // net/http has sent the head when it notices
				want = "failed"
			}
			if strings.ReplaceAll(got, ourURL, "") != strings.ReplaceAll(want, url, "") {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// Many requests at once on one connection, with bodies both ways.
func TestHTTP2Many(t *testing.T) {
	url, client := serveH2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }), true)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for j := range 10 {
				body := bytes.Repeat([]byte{byte(i), byte(j)}, i*j*150)
				resp, err := client.Post(url, "", bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if !bytes.Equal(got, body) || err != nil || resp.ProtoMajor != 2 {
					t.Errorf("%d bytes, %v, %s, want %d", len(got), err, resp.Proto, len(body))
				}
			}
		})
	}
	wg.Wait()
}

// The context of a request ends when its client gives it up, and others go on.
func TestHTTP2Cancel(t *testing.T) {
	gone := make(chan error, 1)
	url, client := serveH2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			gone <- r.Context().Err()
		}
	}), true)
	ctx, cancel := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, "GET", url, nil)
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("context: %v", err)
	}
	resp, err = client.Get(url + "/other")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// curl (nghttp2) agrees with us.
func TestHTTP2Curl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	if v, _ := exec.Command(curl, "--version").Output(); !bytes.Contains(v, []byte("HTTP2")) {
		t.Skip("this curl does not speak HTTP/2")
	}
	url, _ := serveH2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		w.Header().Set("X-Got", fmt.Sprint(r.Method, " ", len(b), " ", err))
		w.Write(make([]byte, 500_000))
	}), true)
	run := func(args ...string) string {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, curl, append([]string{"--silent", "--show-error", "--insecure", "--http2", "--no-progress-meter", "--output", "/dev/null",
			"--write-out", "%{http_version} %{response_code} %{size_download} %header{x-got}\n"}, args...)...)
		cmd.Stdin = bytes.NewReader(make([]byte, 2_000_000))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("curl %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{url}, "2 200 500000 GET 0 <nil>\n"},
		{[]string{"--data-binary", "@-", url}, "2 200 500000 POST 2000000 <nil>\n"},
		{[]string{"--upload-file", "-", url}, "2 200 500000 PUT 2000000 <nil>\n"},
		{[]string{"--head", url}, "2 200 0 HEAD 0 <nil>\n"},
		{[]string{url + "/1", "--output", "/dev/null", url + "/2"}, strings.Repeat("2 200 500000 GET 0 <nil>\n", 2)},
	} {
		if got := run(c.args...); got != c.want {
			t.Errorf("curl %q = %q, want %q", c.args, got, c.want)
		}
	}
}

// FuzzHTTP2: no bytes make the server panic or hang, and no handler sees a request that
// HTTP/1.1 could not say in one way only.
func FuzzHTTP2(f *testing.F) {
	settings := frame(frameSettings, 0, 0, nil)
	block := []byte{0x82, 0x87, 0x84, 0x41, 1, 'h'}
	f.Add(slices.Concat(settings, frame(frameHeaders, flagEnd|flagEndHeaders, 1, block), frame(framePing, 0, 0, make([]byte, 8))))
	f.Add(slices.Concat(settings, frame(frameHeaders, flagEndHeaders, 1, block), frame(frameData, flagPadded, 1, []byte("\x01ab")), frame(frameHeaders, flagEnd|flagEndHeaders, 1, []byte{0x40, 1, 'x', 1, 'y'})))
	f.Add(slices.Concat(settings, frame(frameHeaders, flagEnd, 1, block[:2]), frame(frameContinuation, flagEndHeaders, 1, block[2:]), frame(frameReset, 0, 1, u32(8)), frame(frameWindow, 0, 0, u32(9))))
	f.Add(slices.Concat(frame(frameSettings, 0, 0, append([]byte{0, settingWindow}, u32(2)...)), frame(frameHeaders, flagEnd|flagEndHeaders|flagPriority, 3, append(make([]byte, 5), block...)), frame(frameGoAway, 0, 0, make([]byte, 8))))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !isToken(r.Method) || !isVisible(r.RequestURI) || !isHost(r.Host) || len(r.Header["Connection"])+len(r.Header["Transfer-Encoding"])+len(r.Header["Host"]) > 0 || len(r.Header["Content-Length"]) > 1 {
				t.Errorf("request %q %q %q %v", r.Method, r.RequestURI, r.Host, r.Header)
			}
			for name, values := range r.Header {
				if !isToken(name) || slices.ContainsFunc(values, func(v string) bool { return !isValue(v) }) {
					t.Errorf("field %q: %q", name, values)
				}
			}
			n, err := io.Copy(w, r.Body)
			if err == nil && r.ContentLength >= 0 && n != r.ContentLength {
				t.Errorf("body of %d bytes, Content-Length %d", n, r.ContentLength)
			}
		})}
		theirs, ours := net.Pipe()
		s.conns = map[*conn]struct{}{}
		cn := &conn{srv: s, raw: ours, rwc: ours}
		s.track(cn)
		go func() {
			defer s.running.Done()
			defer s.forget(cn)
			cn.serveHTTP2()
		}()
		go func() {
			theirs.Write(append([]byte(preface), b...))
			time.Sleep(time.Millisecond)
			theirs.Close()
		}()
		io.Copy(io.Discard, theirs)
		s.Close()
		s.running.Wait()
	})
}

// BenchmarkHTTP2Get4K compares with net/http's server: user time of both ends is in it.
func BenchmarkHTTP2Get4K(b *testing.B) {
	for _, ours := range []bool{true, false} {
		b.Run(fmt.Sprintf("ours=%v", ours), func(b *testing.B) {
			body := make([]byte, 4<<10)
			url, client := serveH2(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.Write(body)
			}), ours)
			b.ReportAllocs()
			for b.Loop() {
				resp, err := client.Get(url)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}
