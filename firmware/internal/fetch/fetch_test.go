package fetch

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func request(t *testing.T, ctx context.Context, method, url, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDo(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Asked", r.Method+" "+r.Host+r.RequestURI+" "+string(text))
		w.WriteHeader(http.StatusEarlyHints) // §15.2 of RFC 9110: interim answers are skipped
		w.WriteHeader(http.StatusFound)
		io.WriteString(w, "over there")
	}))
	defer server.Close()
	dial := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
	}
	resp, err := Do(request(t, t.Context(), "POST", "http://device/a?b=c", "hello"), dial)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil || string(text) != "over there" || resp.StatusCode != http.StatusFound {
		t.Errorf("answer = %d %q, %v; want 302 \"over there\"", resp.StatusCode, text, err)
	}
	if got, want := resp.Header.Get("X-Asked"), "POST device/a?b=c hello"; got != want {
		t.Errorf("the server was asked %q, want %q", got, want)
	}
	if err := resp.Body.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// TestEnds checks what does not end well: each must end, close its connection, and say why.
func TestEnds(t *testing.T) {
	refused := errors.New("refused")
	if _, err := Do(request(t, t.Context(), "GET", "http://device/", ""), func(context.Context) (net.Conn, error) { return nil, refused }); err != refused {
		t.Errorf("error = %v, want that of dial", err)
	}
	for _, tc := range []struct{ name, answer, want string }{
		{"head too long", "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxHead), "longer than"},
		{"no HTTP", "SSH-2.0-x\r\n", "read the answer"},
		{"silence", "", "too slow"},
		{"half a head", "HTTP/1.1 200 OK\r\nX:", "too slow"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				go func() {
					go io.Copy(io.Discard, theirs)
					io.WriteString(theirs, tc.answer)
				}()
				defer theirs.Close()
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("too slow"))
				defer cancel()
				_, err := Do(request(t, ctx, "GET", "http://device/", ""), func(context.Context) (net.Conn, error) { return ours, nil })
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error = %v, want %q in it", err, tc.want)
				}
				if _, err := ours.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("the connection is open (%v)", err)
				}
			})
		})
	}
}

// TestBodyEnds checks that the context ends a body that waits.
func TestBodyEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go func() {
			go io.Copy(io.Discard, theirs)
			io.WriteString(theirs, "HTTP/1.1 200 OK\r\n\r\nevent")
		}()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		resp, err := Do(request(t, ctx, "GET", "http://device/", ""), func(context.Context) (net.Conn, error) { return ours, nil })
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if text, err := io.ReadAll(resp.Body); string(text) != "event" || err == nil {
			t.Errorf("body = %q, %v; want \"event\" and an error", text, err)
		}
	})
}

// TestSmall holds the promise of the package: a program with it links no http.Transport.
func TestSmall(t *testing.T) {
	program := t.TempDir() + "/program"
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./testdata/program").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), "go", "tool", "nm", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), "internal/fetch.Do") || strings.Contains(string(out), "net/http.(*Transport).dialConn") {
		t.Error("a program that calls Do links http.Transport")
	}
}
