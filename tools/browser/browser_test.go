package browser

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const testPage = `<!doctype html><html lang=en><meta name=viewport content="width=device-width"><title>t</title>
<style>.gone{display:none} @media (prefers-color-scheme: dark){body{background:#000;color:#fff}}</style>
<p id=out>nothing yet</p><input id=name value=old><button id=go>Go</button><button id=off disabled>Off</button>
<select id=role><option>owner<option>guest</select><p id=hidden class=gone>hidden</p>
<script>document.cookie='seen=1';go.onclick=()=>setTimeout(()=>{out.textContent='hello '+document.getElementById('name').value+' '+role.value},50)</script>`

func start(t *testing.T, c Config) *Browser {
	t.Helper()
	b, err := Start(t.Context(), c)
	if errors.Is(err, ErrAbsent) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func check(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestPage(t *testing.T) {
	var cookies atomic.Int32
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			if r.Header.Get("Cookie") != "" {
				cookies.Add(1)
			}
			w.Header().Set("Content-Type", "text/html")
			w.Header().Set("Content-Security-Policy", "img-src 'none'")
			io.WriteString(w, testPage)
			return
		}
		http.NotFound(w, r)
	}))
	srv.Config.ErrorLog = nil
	defer srv.Close()
	pin := sha256.Sum256(srv.Certificate().RawSubjectPublicKeyInfo)
	b := start(t, Config{Pins: [][]byte{pin[:]}, Hosts: []string{"device.local"}})
	ctx := t.Context()

	p, err := b.Open(ctx, Phone, "Test Phone")
	check(t, err, p.Go(ctx, srv.URL), p.Fill(ctx, "#name", "Küche \"1\""), p.Choose(ctx, "#role", "guest"), p.Click(ctx, "#go"),
		p.Read(ctx, "#out", "hello Küche \"1\" guest"), p.See(ctx, "#out"), p.Miss(ctx, "#hidden"))
	var seen struct {
		Width, Scale int
		Dark         bool
		Agent        string
	}
	look := "({Width: innerWidth, Scale: devicePixelRatio, Dark: matchMedia('(prefers-color-scheme: dark)').matches, Agent: navigator.userAgent})"
	check(t, p.Eval(ctx, look, &seen))
	if seen.Width != 390 || seen.Scale != 2 || seen.Dark || seen.Agent != "Test Phone" {
		t.Errorf("the page sees %+v, want the phone", seen)
	}
	dark := Desktop
	dark.Dark = true
	check(t, p.Show(ctx, dark), p.Eval(ctx, look, &seen))
	if seen.Width != 1280 || !seen.Dark {
		t.Errorf("the page sees %+v, want the dark desktop", seen)
	}
	data, err := p.Screenshot(ctx, false)
	check(t, err)
	if img, err := png.Decode(bytes.NewReader(data)); err != nil || img.Bounds().Dx() != 1280 || img.Bounds().Dy() != 800 {
		t.Errorf("screenshot: %v, want 1280x800", err)
	} else if r, _, _, _ := img.At(900, 700).RGBA(); r != 0 {
		t.Errorf("screenshot of a black page is not black")
	}

	if got := p.Complaints(); len(got) > 0 {
		t.Errorf("a good page complains: %q", got)
	}
	check(t, p.Eval(ctx, "document.body.append(Object.assign(new Image, {src: 'x.png'}))", nil), p.Eval(ctx, "console.error('went', 'wrong')", nil),
		p.Eval(ctx, "setTimeout(() => { throw new Error('thrown') })", nil), p.Eval(ctx, "new Promise(r => setTimeout(r, 100))", nil))
	got := strings.Join(p.Complaints(), "\n")
	for _, want := range []string{"Content Security Policy", "went", "thrown"} {
		if !strings.Contains(got, want) {
			t.Errorf("complaints %q lack %q", got, want)
		}
	}

	// Another tab is another phone; a name that was given leads here, others nowhere.
	p2, err := b.Open(ctx, Small, "")
	check(t, err, p2.Go(ctx, strings.Replace(srv.URL, "127.0.0.1", "device.local", 1)), p.Go(ctx, srv.URL))
	if n := cookies.Load(); n != 1 {
		t.Errorf("%d visits with a cookie, want 1: the second of the first tab", n)
	}
	if err := p2.Go(ctx, "https://elsewhere.example/"); err == nil {
		t.Error("a foreign name was resolved")
	}

	// What cannot be done says so, in time.
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := p.Click(short, "#off"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "nothing yet") {
		t.Errorf("click on a disabled button = %v, want a deadline and what the page shows", err)
	}
	if err := p.Eval(ctx, "null.x", nil); err == nil || !strings.Contains(err.Error(), "TypeError") {
		t.Errorf("Eval(null.x) = %v, want a TypeError", err)
	}
	if err := p.Choose(ctx, "#role", "king"); err == nil {
		t.Error("chose what is not there")
	}
}

func TestUntrusted(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	defer srv.Close()
	b := start(t, Config{Pins: [][]byte{make([]byte, 32)}})
	p, err := b.Open(t.Context(), Phone, "")
	check(t, err)
	if err := p.Go(t.Context(), srv.URL); err == nil || !strings.Contains(err.Error(), "CERT") {
		t.Errorf("a server with another key = %v, want a certificate error", err)
	}
}

// Nothing is left of a browser, and calls after its end fail at once.
func TestClose(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	b := start(t, Config{})
	p, err := b.Open(t.Context(), Phone, "")
	check(t, err, b.Close(), b.Close())
	if err := p.Eval(t.Context(), "1", nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Eval after Close = %v, want %v", err, os.ErrClosed)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	groups, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range groups {
		text, _ := os.ReadFile(stat)
		if _, rest, ok := bytes.Cut(text, []byte(") ")); ok {
			if f := strings.Fields(string(rest)); len(f) > 2 && f[2] == strconv.Itoa(b.cmd.Process.Pid) && f[0] != "Z" {
				t.Errorf("still running: %.60s", text)
			}
		}
	}
}

// A browser that dies lets nobody wait.
func TestKilled(t *testing.T) {
	b := start(t, Config{})
	p, err := b.Open(t.Context(), Phone, "")
	check(t, err)
	done := make(chan error, 1)
	go func() { done <- p.Eval(t.Context(), "new Promise(() => {})", nil) }()
	check(t, b.cmd.Process.Kill())
	if err := <-done; err == nil {
		t.Error("Eval in a browser that was killed gave no error")
	}
}
