package sample

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/cloudrest/cloudrest/tether"
)

// ask sends one request straight to the handler.
func ask(c *Controller, method, path, body string, fields ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i+1 < len(fields); i += 2 {
		r.Header.Add(fields[i], fields[i+1])
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	return w
}

func TestAnswers(t *testing.T) {
	for name, q := range map[string]struct {
		method, path, body string
		status             int
		contains           string
	}{
		"home":             {"GET", "/", "", 200, "EventSource"},
		"zones":            {"GET", "/zones", "", 200, `"name":"Roses"`},
		"zone":             {"GET", "/zones/2", "", 200, `"id":2`},
		"no zone":          {"GET", "/zones/7", "", 404, "zones are 1 to 6"},
		"odd zone":         {"GET", "/zones/x", "", 404, "zones are 1 to 6"},
		"change":           {"PUT", "/zones/2", `{"minutes":33}`, 200, `"minutes":33`},
		"bad minutes":      {"PUT", "/zones/2", `{"minutes":0}`, 400, "minutes: want 1 to 240"},
		"bad name":         {"PUT", "/zones/2", `{"name":"a\nb"}`, 400, "name: want one line"},
		"unknown field":    {"PUT", "/zones/2", `{"colour":1}`, 400, "colour"},
		"two values":       {"PUT", "/zones/2", `{} {}`, 400, "follows"},
		"too large":        {"PUT", "/zones/2", `{"name":"` + strings.Repeat("x", MaxBody) + `"}`, 413, "at most 65536"},
		"start":            {"POST", "/zones/3/start", `{"minutes":5}`, 202, `"state":"watering","remaining":5`},
		"start plain":      {"POST", "/zones/3/start", ``, 202, `"remaining":14`},
		"start long":       {"POST", "/zones/3/start", `{"minutes":241}`, 400, "minutes"},
		"stop idle":        {"POST", "/zones/3/stop", ``, 200, `"idle"`},
		"program":          {"GET", "/program", "", 200, `"06:00"`},
		"bad time":         {"PUT", "/program", `{"starts":["25:00"]}`, 400, "no time of day"},
		"bad day":          {"PUT", "/program", `{"days":["someday"]}`, 400, "none of mon"},
		"bad from":         {"GET", "/watering/log?from=yesterday", "", 400, "no date"},
		"bad days":         {"GET", "/watering/log?days=367", "", 400, "1 to 366"},
		"bad size":         {"GET", "/firmware?size=-1", "", 400, "0 to"},
		"method":           {"DELETE", "/zones/2", "", 405, ""},
		"unknown path":     {"GET", "/nothing", "", 404, ""},
		"echo":             {"PATCH", "/echo?a=1", "hello", 200, `"path":"/echo?a=1"`},
		"upload by length": {"POST", "/upload", "abc", 200, `"bytes":3,"sha256":"ba7816bf`},
	} {
		w := ask(New(Config{}), q.method, q.path, q.body)
		if w.Code != q.status || !strings.Contains(w.Body.String(), q.contains) {
			t.Errorf("%s: got %d %q, want %d with %q", name, w.Code, w.Body, q.status, q.contains)
		}
	}
}

func TestDescriptor(t *testing.T) {
	d, err := tether.ParseDescriptor(ask(New(Config{}), "GET", "/device", "").Body.Bytes())
	if err != nil || len(d.Warnings) > 0 {
		t.Fatalf("err = %v, warnings = %q, want a clean descriptor", err, d.Warnings)
	}
	if d.Name != "Garden irrigation" || !bytes.Contains(d.Raw, []byte(`"valves"`)) {
		t.Errorf("descriptor = %+v, want its name and an unknown field", d)
	}
}

func TestPreconditions(t *testing.T) {
	c := New(Config{})
	for _, path := range []string{"/zones", "/zones/1", "/program", "/device"} {
		tag := ask(c, "GET", path, "").Header().Get("ETag")
		if w := ask(c, "GET", path, "", "If-None-Match", `"x", W/`+tag); w.Code != 304 || w.Body.Len() != 0 {
			t.Errorf("%s: If-None-Match with its tag: got %d with %d bytes, want 304 with none", path, w.Code, w.Body.Len())
		}
	}
	tag := ask(c, "GET", "/zones/1", "").Header().Get("ETag")
	if w := ask(c, "PUT", "/zones/1", `{"minutes":5}`, "If-Match", tag); w.Code != 200 || w.Header().Get("ETag") == tag {
		t.Errorf("If-Match with the tag: got %d and tag %s, want 200 and a new one", w.Code, w.Header().Get("ETag"))
	}
	if w := ask(c, "PUT", "/zones/1", `{"minutes":6}`, "If-Match", tag); w.Code != 412 {
		t.Errorf("If-Match with the old tag: got %d, want 412", w.Code)
	}
	if w := ask(c, "GET", "/zones/1", ""); !strings.Contains(w.Body.String(), `"minutes":5`) {
		t.Errorf("after a refused change: %s, want minutes 5", w.Body)
	}
	if w := ask(c, "PUT", "/program", `{"starts":["07:00"]}`, "If-Match", `"program-9"`); w.Code != 412 {
		t.Errorf("program, wrong tag: got %d, want 412", w.Code)
	}
}

func TestWateringEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		c := New(Config{Notify: func(l string) { lines = append(lines, l) }})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Run(ctx) }()
		synctest.Wait()

		if w := ask(c, "POST", "/zones/2/start", `{"minutes":10}`); w.Code != 202 {
			t.Fatalf("start: got %d", w.Code)
		}
		if w := ask(c, "POST", "/zones/2/start", `{"minutes":10}`); w.Code != 409 {
			t.Errorf("second start: got %d, want 409", w.Code)
		}
		time.Sleep(9*time.Minute + time.Second)
		if w := ask(c, "GET", "/zones/2", ""); !strings.Contains(w.Body.String(), `"remaining":1`) {
			t.Errorf("after 9 min: %s, want 1 remaining", w.Body)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		c.mu.Lock()
		got := slices.Clone(lines)
		c.mu.Unlock()
		if want := []string{"zone 2 started, 10 min", "zone 2 stopped"}; !slices.Equal(got, want) {
			t.Errorf("notifications = %q, want %q", got, want)
		}
		day := time.Now().UTC().Format(time.DateOnly)
		w := ask(c, "GET", "/watering/log?days=1&from="+day, "")
		if want := `"minutes":10,"litres":125,"cause":"manual"`; !strings.Contains(w.Body.String(), want) {
			t.Errorf("log = %s, want %s", w.Body, want)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
}

func TestLogIsDeterministic(t *testing.T) {
	now := func() time.Time { return time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC) }
	path := "/watering/log?from=2026-05-01&days=14"
	a, b := ask(New(Config{Now: now}), "GET", path, "").Body.String(), ask(New(Config{Now: now}), "GET", path, "").Body.String()
	var log struct{ Waterings []Watering }
	if err := json.Unmarshal([]byte(a), &log); err != nil {
		t.Fatal(err)
	}
	if a != b || len(log.Waterings) == 0 || len(log.Waterings)%(2*Zones) != 0 {
		t.Errorf("%d entries, equal = %v; want the same whole days each time", len(log.Waterings), a == b)
	}
	if !slices.IsSortedFunc(log.Waterings, func(a, b Watering) int { return a.Start.Compare(b.Start) }) {
		t.Error("entries are out of order")
	}
}

func TestDiagnosticsIsSlowAndCanBeLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{})
		begin := time.Now()
		if w := ask(c, "GET", "/diagnostics", ""); w.Code != 200 || time.Since(begin) != defaultSlow {
			t.Errorf("got %d after %v, want 200 after %v", w.Code, time.Since(begin), defaultSlow)
		}
		begin = time.Now()
		if w := ask(c, "GET", WeatherPath, ""); w.Code != 200 || time.Since(begin) != defaultSlow/10 || w.Header().Get("Cache-Control") != "public, max-age=2" {
			t.Errorf("%s: got %d after %v, %v, want 200 after %v, for all and 2 s", WeatherPath, w.Code, time.Since(begin), w.Header(), defaultSlow/10)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begin = time.Now()
		c.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/diagnostics", nil))
		if took := time.Since(begin); took != 0 {
			t.Errorf("a client that left is served for %v", took)
		}
	})
}

func TestEvents(t *testing.T) {
	c := New(Config{})
	srv := httptest.NewServer(c)
	defer srv.Close()
	res, err := srv.Client().Get(srv.URL + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	in := bufio.NewScanner(res.Body)
	next := func() (id string, z Zone) {
		for in.Scan() && in.Text() != "" {
			if s, ok := strings.CutPrefix(in.Text(), "id: "); ok {
				id = s
			}
			if s, ok := strings.CutPrefix(in.Text(), "data: "); ok {
				if err := json.Unmarshal([]byte(s), &z); err != nil {
					t.Fatal(err)
				}
			}
		}
		return id, z
	}
	for i := 1; i <= Zones; i++ {
		if id, z := next(); z.ID != i || id != fmt.Sprintf("%d.1", i) {
			t.Fatalf("first states: event %d is %s of zone %d", i, id, z.ID)
		}
	}
	ask(c, "POST", "/zones/4/start", "")
	if id, z := next(); id != "4.2" || z.State != "watering" {
		t.Errorf("change = %s %+v, want 4.2 watering", id, z)
	}
}

func TestWebSocket(t *testing.T) {
	c := New(Config{})
	srv := httptest.NewServer(c)
	defer srv.Close()
	conn, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(srv.URL, "http")+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, kind := range []int{websocket.TextMessage, websocket.BinaryMessage} {
		want := bytes.Repeat([]byte("x"), 100_000)
		if err := conn.WriteMessage(kind, want); err != nil {
			t.Fatal(err)
		}
		if k, got, err := conn.ReadMessage(); err != nil || k != kind || !bytes.Equal(got, want) {
			t.Errorf("echo of kind %d: kind %d, %d bytes, %v", kind, k, len(got), err)
		}
	}
	states, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(srv.URL, "http")+"/ws?state=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer states.Close()
	for i := range Zones + 1 {
		if i == Zones {
			ask(c, "PUT", "/zones/1", `{"name":"Lawn"}`)
		}
		var z Zone
		if err := states.ReadJSON(&z); err != nil {
			t.Fatal(err)
		}
		if i == Zones && z.Name != "Lawn" {
			t.Errorf("state = %+v, want the new name", z)
		}
	}
}

func TestFirmware(t *testing.T) {
	c := New(Config{})
	const size = 3*firmwareBlock + 100
	whole := ask(c, "GET", fmt.Sprint("/firmware?size=", size), "").Body.Bytes()
	want, err := io.ReadAll(Firmware(size))
	if err != nil || len(whole) != size || !bytes.Equal(whole, want) {
		t.Fatalf("%d bytes, %v, want the %d of Firmware", len(whole), err, size)
	}
	if bytes.Equal(whole[:firmwareBlock], whole[firmwareBlock:2*firmwareBlock]) {
		t.Error("two blocks are the same")
	}
	part := ask(c, "GET", fmt.Sprint("/firmware?size=", size), "", "Range", "bytes=65530-65550")
	if part.Code != 206 || !bytes.Equal(part.Body.Bytes(), whole[65530:65551]) {
		t.Errorf("range: got %d, %x, want 206, %x", part.Code, part.Body.Bytes(), whole[65530:65551])
	}
	sum := sha256.Sum256(whole)
	if w := ask(c, "PUT", "/upload", string(whole)); !strings.Contains(w.Body.String(), hex.EncodeToString(sum[:])) {
		t.Errorf("upload = %s, want hash %x", w.Body, sum)
	}
}

func TestFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	f := &FIFO{Path: path}
	f.Line("nobody is there yet") // must not wait
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skipf("no named pipes here: %v", err)
	}
	if err := f.write("no reader"); err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("without a reader: %v, want that the gateway is not running", err)
	}
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	f.Line("zone 2\nstarted")
	b := make([]byte, 100)
	n, err := syscall.Read(fd, b)
	if got, want := string(b[:max(n, 0)]), "zone 2 started\n"; err != nil || got != want {
		t.Errorf("read %q, %v, want %q", got, err, want)
	}
}

// Many clients at once: the race detector is the judge.
func TestConcurrent(t *testing.T) {
	c := New(Config{Minute: time.Microsecond, Notify: func(string) {}})
	go c.Run(t.Context())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				ask(c, "POST", fmt.Sprintf("/zones/%d/start", 1+(i+j)%Zones), "")
				ask(c, "PUT", fmt.Sprintf("/zones/%d", 1+j%Zones), `{"minutes":7}`)
				if w := ask(c, "GET", "/zones", ""); w.Code != http.StatusOK {
					t.Errorf("zones: %d", w.Code)
				}
				ask(c, "GET", "/watering/log", "")
			}
		})
	}
	wg.Wait()
	if len(c.manual) > maxManual {
		t.Errorf("%d entries by hand, at most %d are kept", len(c.manual), maxManual)
	}
}

// The gateway asks this in the factory, and again when a device lost power there.
func TestFactoryConnect(t *testing.T) {
	c := New(Config{})
	ask := func(method, body string) (int, Joined) {
		t.Helper()
		w := httptest.NewRecorder()
		c.ServeHTTP(w, httptest.NewRequest(method, "/factory/connect", strings.NewReader(body)))
		var j Joined
		json.Unmarshal(w.Body.Bytes(), &j)
		return w.Code, j
	}
	const body = `{"ssid":"Line 2","passphrase":"12345678","security":"wpa2-psk","station":"https://station:15850"}`
	for i, want := range []int{202, 200} {
		if status, j := ask("POST", body); status != want || j != (Joined{"Line 2", "https://station:15850", i + 1}) {
			t.Errorf("asked %d times: %d %+v, want %d", i+1, status, j, want)
		}
	}
	if status, _ := ask("POST", `{"passphrase":"short"}`); status != 400 {
		t.Errorf("a short passphrase: %d, want 400", status)
	}
	if _, j := ask("GET", ""); j.Asked != 2 {
		t.Errorf("asked %d times, want 2", j.Asked)
	}
}
