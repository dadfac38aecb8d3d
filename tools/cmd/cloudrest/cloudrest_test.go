package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/firmware/discovery/dnssd"
	"github.com/cloudrest/cloudrest/tether"
	"github.com/cloudrest/cloudrest/tether/trust"
	"github.com/cloudrest/cloudrest/tools/sample"
)

var gardenID = tether.NewDeviceID([]byte("garden"))

// garden is a device on the LAN: the sample behind TLS, and what mDNS tells of it.
func garden(t *testing.T, h http.Handler) (*httptest.Server, sighting) {
	t.Helper()
	// As a device shows it: a leaf, and the authority that signed it.
	ca, err := newAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.issue("garden", "garden.local"); err != nil {
		t.Fatal(err)
	}
	chain, err := tls.LoadX509KeyPair(filepath.Join(ca.dir, "garden.pem"), filepath.Join(ca.dir, "garden.key"))
	if err != nil {
		t.Fatal(err)
	}
	chain.Certificate = append(chain.Certificate, ca.cert.Raw)
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{chain}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	at, _ := place(srv.URL)
	return srv, sighting{
		way: "mdns", instance: "Garden", id: gardenID, name: "Garden irrigation", url: srv.URL,
		addrs: []netip.Addr{at.Addr()}, port: at.Port(), fingerprint: trust.Pin(ca.cert), api: "v1",
	}
}

// heard is a LAN on which discovery hears these, then nothing more until it is given up.
func heard(list ...sighting) func(context.Context, []string) <-chan sighting {
	return func(ctx context.Context, _ []string) <-chan sighting {
		c := make(chan sighting, len(list))
		for _, s := range list {
			c <- s
		}
		context.AfterFunc(ctx, func() { close(c) })
		return c
	}
}

type result struct {
	code     int
	out, err string
}

func cloudrest(t *testing.T, env environment, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	env.stderr = &errs
	if env.discover == nil {
		env.discover = heard()
	}
	if env.stdin == nil {
		env.stdin = strings.NewReader("")
	}
	code := app(env).Main(t.Context(), args, nil, &out, &errs)
	return result{code, out.String(), errs.String()}
}

func (r result) check(t *testing.T, code int, out, err string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.out, out) || !strings.Contains(r.err, err) {
		t.Errorf("exit %d, out %q, err %q; want exit %d, out with %q, err with %q", r.code, r.out, r.err, code, out, err)
	}
}

func TestLAN(t *testing.T) {
	srv, garden := garden(t, sample.New(sample.Config{}))
	pinsFile := filepath.Join(t.TempDir(), "sub", "pins.json")
	on := environment{discover: heard(garden)}
	off := environment{discover: heard()}
	quick := []string{"--pins", pinsFile, "--wait", "200ms"}
	run := func(env environment, args ...string) result {
		return cloudrest(t, env, append(args, quick...)...)
	}

	run(off, "get", "Garden irrigation", "/device").check(t, exitConnect, "", "no device answered")
	run(on, "get", "Shed", "/device").check(t, exitConnect, "", "no device \"Shed\" answered in 200ms; these did:\n")
	run(on, "get", "garden irrigation", "/zones/2").check(t, 0, `"name":"Roses"`, "first contact with Garden irrigation")
	// Now it is remembered: found without discovery, by every way of naming it.
	for _, word := range []string{"Garden irrigation", string(gardenID), gardenID.Label(), gardenID.Short(), srv.URL + "/"} {
		run(off, "get", word, "/zones/2").check(t, 0, `"name":"Roses"`, "")
	}
	run(off, "get", srv.URL+"/zones/2").check(t, 0, `"name":"Roses"`, "")

	run(on, "put", gardenID.Short(), "zones/2", "--data", `{"minutes":44}`).check(t, 0, `"minutes":44`, "")
	run(on, "put", gardenID.Short(), "/zones/2", "-d", `{"minutes":0}`).check(t, exitStatus, "want 1 to 240", "PUT /zones/2: 400 Bad Request")
	run(on, "delete", gardenID.Short(), "/zones/2").check(t, exitStatus, "", "405")
	run(on, "get", gardenID.Short()).check(t, exitConnect, "", "which path")
	run(on, "get", gardenID.Short(), "https://elsewhere.example/").check(t, exitConnect, "", "is no path")
	run(on, "get", "-i", gardenID.Short(), "/device").check(t, 0, "Etag: \"device-", "")
	run(on, "get", "--json", gardenID.Short(), "/nothing").check(t, exitStatus, `"status":404`, "")

	// Bodies: text, a file, standard input; the sample echoes what it saw.
	file := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(file, []byte(`{"a":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ data, body, kind string }{
		{"hello", "hello", "text/plain; charset=utf-8"}, {"[1]", "[1]", "application/json"},
		{"@" + file, `{"a":1}`, "application/json"}, {"-", "from stdin", "application/octet-stream"},
	} {
		r := run(environment{stdin: strings.NewReader("from stdin")}, "patch", gardenID.Short(), "/echo?x=1&y", "--data", c.data, "-H", "X-A: b", "-H", "x-a: c")
		var echo sample.Echo
		if err := json.Unmarshal([]byte(r.out), &echo); err != nil {
			t.Fatalf("%v: %+v", err, r)
		}
		if echo.Body != c.body || echo.Header.Get("Content-Type") != c.kind || echo.Method != "PATCH" || echo.Path != "/echo?x=1&y" ||
			!slices.Equal(echo.Header["X-A"], []string{"b", "c"}) {
			t.Errorf("--data %s arrived as %+v", c.data, echo)
		}
	}
	run(off, "post", gardenID.Short(), "/echo", "--data", "@nowhere").check(t, exitConnect, "", "read body: open nowhere")

	// Another key under the same ID: refused, until it is forgotten.
	stranger := garden
	stranger.fingerprint = strings.Repeat("ab", 32)
	if err := os.WriteFile(pinsFile, bytes.ReplaceAll(read(t, pinsFile), []byte(garden.fingerprint), []byte(strings.Repeat("cd", 32))), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, s := range []sighting{garden, stranger} {
		run(environment{discover: heard(s)}, "get", gardenID.Short(), "/zones").check(t, exitConnect, "", "does not show the key that was expected")
	}
	run(off, "get", srv.URL+"/zones").check(t, exitConnect, "", "cloudrest forget")
	cloudrest(t, on, "forget", gardenID.Short(), "--pins", pinsFile).check(t, 0, "forgot Garden irrigation", "")
	cloudrest(t, on, "forget", gardenID.Short(), "--pins", pinsFile).check(t, exitConnect, "", "is remembered")
	// It announces one key and shows another.
	run(environment{discover: heard(stranger)}, "get", gardenID.Short(), "/zones").check(t, exitConnect, "", "pin now      "+garden.fingerprint)
	// The user knows the pin, from a label.
	run(on, "get", gardenID.Short(), "/zones", "--fingerprint", stranger.fingerprint).check(t, exitConnect, "", "which --fingerprint gives")
	run(on, "get", gardenID.Short(), "/zones", "--fingerprint", garden.fingerprint).check(t, 0, "Roses", "first contact")
	run(off, "get", gardenID.Short(), "/zones", "--fingerprint", stranger.fingerprint).check(t, exitConnect, "", "which --fingerprint gives")
}

// A server with the true pin announced, but no device's chain, or the device's authority
// over a leaf that it did not sign.
func TestFalseDevice(t *testing.T) {
	_, garden := garden(t, sample.New(sample.Config{}))
	plain := httptest.NewTLSServer(sample.New(sample.Config{}))
	t.Cleanup(plain.Close)
	fake := garden
	fake.url = plain.URL
	at, _ := place(plain.URL)
	fake.addrs, fake.port = []netip.Addr{at.Addr()}, at.Port()
	r := cloudrest(t, environment{discover: heard(fake)}, "get", gardenID.Short(), "/zones", "--pins", filepath.Join(t.TempDir(), "p"), "--wait", "200ms")
	r.check(t, exitConnect, "", "pin now      none: not the certificate chain of a CloudREST device: 1 certificates")
	r.check(t, exitConnect, "", "Compare the pin with the device's label")
	udp := sighting{way: "udp", name: "Garden irrigation", mac: "02:00:00:00:00:01", url: plain.URL}
	r = cloudrest(t, environment{discover: heard(udp)}, "get", "garden irrigation", "/zones", "--pins", filepath.Join(t.TempDir(), "p"), "--wait", "200ms")
	r.check(t, exitConnect, "", "does not tell who it is")
}

// What an older version remembered is refused in words, not taken over unseen; other
// devices in the file are not disturbed.
func TestOldPins(t *testing.T) {
	_, garden := garden(t, sample.New(sample.Config{}))
	file := filepath.Join(t.TempDir(), "pins.json")
	other := tether.NewDeviceID([]byte("other"))
	text := fmt.Sprintf(`[{"id":%q,"name":"Garden irrigation","fingerprint":%q,"url":%q},{"id":%q,"name":"other","pin":%q,"url":"https://192.0.2.1","token":"crp_x"}]`,
		gardenID, strings.Repeat("ab", 32), garden.url, other, strings.Repeat("cd", 32))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) result {
		return cloudrest(t, environment{discover: heard(garden)}, append(args, "--pins", file, "--wait", "200ms")...)
	}
	run("get", gardenID.Short(), "/zones").check(t, exitConnect, "", "was remembered by an older version")
	run("get", garden.url+"/zones").check(t, exitConnect, "", "cloudrest forget "+gardenID.Short())
	cloudrest(t, environment{}, "forget", gardenID.Short(), "--pins", file).check(t, 0, "forgot", "")
	run("get", gardenID.Short(), "/zones").check(t, 0, "Roses", "first contact")
	p, err := openPins(file)
	if err != nil || len(p.list) != 2 || p.list[0].ID != other || p.list[0].Token != "crp_x" || p.list[1].Old != "" || p.list[1].Pin != garden.fingerprint {
		t.Errorf("pins = %+v, %v", p.list, err)
	}
}

// The token of a paired client goes to the pinned device only, beside what the user sends.
func TestClientToken(t *testing.T) {
	_, garden := garden(t, sample.New(sample.Config{}))
	file := filepath.Join(t.TempDir(), "pins.json")
	p, err := openPins(file)
	if err != nil {
		t.Fatal(err)
	}
	e := pin{ID: gardenID, Name: "Garden irrigation", Pin: garden.fingerprint, URL: garden.url, Token: "crp_secret"}
	if err := p.put(e); err != nil {
		t.Fatal(err)
	}
	type fields = map[string]string
	for _, tt := range []struct {
		args []string
		want fields
	}{
		{[]string{"get", gardenID.Short(), "/echo"}, fields{"Authorization": "Bearer crp_secret", tokenField: ""}},
		{[]string{"get", garden.url, "/echo"}, fields{"Authorization": "Bearer crp_secret", tokenField: ""}},
		{[]string{"get", garden.url, "/echo", "--fingerprint", garden.fingerprint}, fields{"Authorization": "Bearer crp_secret", tokenField: ""}},
		{[]string{"get", gardenID.Short(), "/echo", "-H", "authorization: Basic x"}, fields{"Authorization": "Basic x", tokenField: "crp_secret"}},
		{[]string{"get", gardenID.Short(), "/echo", "-H", "x-cloudrest-token: mine"}, fields{"Authorization": "", tokenField: "mine"}},
	} {
		r := cloudrest(t, environment{}, append(tt.args, "--pins", file)...)
		var echo sample.Echo
		if err := json.Unmarshal([]byte(r.out), &echo); err != nil {
			t.Fatalf("%v: %+v", err, r)
		}
		for name, want := range tt.want {
			if got := echo.Header.Get(name); got != want {
				t.Errorf("%v: %s = %q, want %q", tt.args, name, got, want)
			}
		}
	}
	// Another server at that address does not see it: the handshake ends before a request.
	var asked atomic.Bool
	plain := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Store(true) }))
	t.Cleanup(plain.Close)
	e.URL = plain.URL
	if err := p.put(e); err != nil {
		t.Fatal(err)
	}
	cloudrest(t, environment{}, "get", plain.URL, "/echo", "--pins", file).check(t, exitConnect, "", "cloudrest forget")
	if asked.Load() {
		t.Error("a server with another key was sent a request")
	}
	// A token stays over a new address, and goes with the key.
	e.Token = ""
	if err := p.put(e); err != nil || p.list[0].Token != "crp_secret" {
		t.Errorf("after a new address: %+v, %v", p.list[0], err)
	}
	e.Pin = strings.Repeat("ab", 32)
	if err := p.put(e); err != nil || p.list[0].Token != "" {
		t.Errorf("after a new key: %+v, %v", p.list[0], err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v, want 0600", st.Mode(), err)
	}
}

// Two commands that write the file do not lose what the other one did.
func TestPinsTogether(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pins.json")
	one, err1 := openPins(file)
	two, err2 := openPins(file)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	a := pin{ID: gardenID, Name: "a", Pin: strings.Repeat("ab", 32), URL: "https://192.0.2.1"}
	b := a
	b.ID, b.Name = tether.NewDeviceID([]byte("b")), "b"
	if err := errors.Join(one.put(a), two.put(b), one.remove(a.ID)); err != nil {
		t.Fatal(err)
	}
	if p, err := openPins(file); err != nil || len(p.list) != 1 || p.list[0] != b {
		t.Errorf("pins = %+v, %v, want b alone", p.list, err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestURL(t *testing.T) {
	_, garden := garden(t, sample.New(sample.Config{}))
	run := func(args ...string) result {
		return cloudrest(t, environment{}, append(args, "--pins", filepath.Join(t.TempDir(), "p"))...)
	}
	run("get", garden.url+"/zones").check(t, exitConnect, "", "not from a public authority")
	run("get", garden.url+"/zones", "--fingerprint", garden.fingerprint).check(t, 0, "Roses", "")
	run("get", garden.url+"/zones", "--fingerprint", "12").check(t, exitConnect, "", "want 64 hex digits")
	run("get", garden.url, "/zones/2?x=1", "--fingerprint", strings.ToUpper(garden.fingerprint)).check(t, 0, "Roses", "")
	run("get", "https://127.0.0.1:1/zones").check(t, exitConnect, "", "reach 127.0.0.1:1")
	run("get", "ftp://127.0.0.1/").check(t, exitConnect, "", "URL")
	run("get", "Garden", "/x", "--via", "relay").check(t, exitConnect, "", "give --relay URL")
	run("gte", "Garden").check(t, 2, "", `did you mean "get"?`)
}

func TestOutput(t *testing.T) {
	_, garden := garden(t, sample.New(sample.Config{}))
	file := filepath.Join(t.TempDir(), "fw")
	cloudrest(t, environment{}, "get", garden.url+"/firmware?size=100000", "--fingerprint", garden.fingerprint, "-o", file).check(t, 0, "", "")
	want, _ := io.ReadAll(sample.Firmware(100000))
	if !bytes.Equal(read(t, file), want) {
		t.Errorf("-o wrote something else")
	}
	if got := printable("a\x1b[31m\x07\u202eb\xff"); got != "a?[31m??b?" {
		t.Errorf("printable = %q", got)
	}
	s := &screen{Writer: io.Discard, width: 12}
	if got, want := s.columns([][]string{{"NAME", "ID"}, {"Gärten", "0123456789"}}), []string{"NAME    ID", "Gärten  012…"}; !slices.Equal(got, want) {
		t.Errorf("columns = %q, want %q", got, want)
	}
}

// relay is the client side of a relay: enough to see what is asked of it.
func relay(t *testing.T) (srv *httptest.Server, caFile string) {
	t.Helper()
	device := sample.New(sample.Config{})
	m := http.NewServeMux()
	m.HandleFunc("GET /v1/devices/list", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"devices":[{"id":%q,"name":"Garden irrigation","online":true},{"id":%q,"name":"twin","online":true},{"id":%q,"name":"twin","online":false}]}`,
			gardenID, tether.NewDeviceID([]byte("1")), tether.NewDeviceID([]byte("2")))
	})
	m.Handle("/d/"+string(gardenID)+"/", http.StripPrefix("/d/"+string(gardenID), device))
	var n atomic.Int64
	m.HandleFunc("GET /v1/devices/{id}/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		// Each connection brings two events and breaks, as a mobile network does.
		begin := 0
		if e, err := tether.ParseEventID(r.Header.Get("Last-Event-ID")); err == nil {
			begin = int(e.Seq)
		} else if n.Load() > 0 {
			t.Errorf("Last-Event-ID = %q after a break", r.Header.Get("Last-Event-ID"))
		}
		n.Add(1)
		fmt.Fprint(w, "retry: 1\n\n")
		for i := begin + 1; i <= begin+2; i++ {
			fmt.Fprintf(w, "id: %s\ndata: {\"n\":%d}\n\n", tether.EventID{Epoch: 7, Seq: uint64(i)}, i)
		}
	})
	srv = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-CloudREST-Token") != "crt_good" {
			http.Error(w, `{"error":401,"message":"Unauthorized"}`, http.StatusUnauthorized)
			return
		}
		m.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return srv, caFile
}

func TestRelay(t *testing.T) {
	srv, ca := relay(t)
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte("crt_good\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) result {
		return cloudrest(t, environment{}, append(args, "--relay", "wss"+strings.TrimPrefix(srv.URL, "https"))...)
	}
	run("get", "Garden irrigation", "/zones/2").check(t, exitConnect, "", "wants an operator token")
	run("get", "Garden irrigation", "/zones/2", "--token", "crt_good").check(t, exitConnect, "", "--relay-ca FILE")
	run("get", "Garden irrigation", "/zones/2", "--token", "crt_bad", "--relay-ca", ca).check(t, exitConnect, "", "401 Unauthorized: the token is not one of this relay's")
	for _, word := range []string{"garden irrigation", gardenID.Short(), string(gardenID), gardenID.Label()} {
		run("get", word, "/zones/2", "--token-file", tokenFile, "--relay-ca", ca).check(t, 0, "Roses", "")
	}
	run("get", "twin", "/", "--token-file", tokenFile, "--relay-ca", ca).check(t, exitConnect, "", `"twin" means 2 devices`)
	run("get", "nobody", "/", "--token-file", tokenFile, "--relay-ca", ca).check(t, exitConnect, "", `knows no device "nobody" (it knows 3)`)

	r := run("events", gardenID.Short(), "--token-file", tokenFile, "--relay-ca", ca, "--json", "--count", "3")
	r.check(t, 0, "", "the stream broke")
	want := ""
	for i := 1; i <= 3; i++ {
		want += fmt.Sprintf(`{"id":"0000000000000007-%d","data":{"n":%d}}`+"\n", i, i)
	}
	if r.out != want {
		t.Errorf("events = %q, want %q", r.out, want)
	}
	run("events", gardenID.Short(), "/zones", "--token-file", tokenFile, "--relay-ca", ca).check(t, exitStatus, "", "which is no event stream")
	run("events", string(gardenID), "--token", "crt_bad", "--relay-ca", ca).check(t, exitStatus, "", "401")
	run("events", gardenID.Short(), "/events", "--token-file", tokenFile, "--relay-ca", ca, "--count", "6").check(t, 0, "Orchard", "")
}

func TestEventsGiveUp(t *testing.T) {
	cloudrest(t, environment{}, "events", "https://127.0.0.1:1/", "--retries", "1").check(t, exitConnect, "", "gave up after 1 attempts")
}

func TestDiscover(t *testing.T) {
	_, garden := garden(t, sample.New(sample.Config{}))
	udp := sighting{way: "udp", name: "Garden irrigation", mac: "02:00:00:00:00:01", url: garden.url}
	shed := sighting{way: "udp", name: "Shed\x1b[2J", mac: "02:00:00:00:00:02", url: "https://10.0.0.9/"}
	gone := garden
	gone.gone = true

	r := cloudrest(t, environment{discover: heard(udp, garden, shed)}, "discover", "--for", "100ms")
	if want := "found    Garden irrigation    " + garden.url + "    udp  02:00:00:00:00:01\n" +
		"changed  Garden irrigation  " + gardenID.Short() + "  " + garden.url + "    mdns+udp  02:00:00:00:00:01\n" +
		"found    Shed?[2J    https://10.0.0.9/    udp  02:00:00:00:00:02\n"; r.out != want {
		t.Errorf("discover prints\n%s\nwant\n%s", r.out, want)
	}

	r = cloudrest(t, environment{discover: heard(garden, udp, gone)}, "discover", "--json", "--for", "100ms")
	var events []string
	for line := range strings.Lines(r.out) {
		var v struct {
			Event  string
			Device device
		}
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		events = append(events, fmt.Sprint(v.Event, v.Device.ID.Short(), v.Device.Ways))
	}
	// After the goodbye, what UDP said remains.
	if want := []string{"found" + gardenID.Short() + "[mdns]", "changed" + gardenID.Short() + "[mdns udp]", "found[udp]", "gone" + gardenID.Short() + "[mdns udp]"}; !slices.Equal(events, want) {
		t.Errorf("events = %q, want %q", events, want)
	}
	cloudrest(t, environment{}, "discover", "--for", "10ms").check(t, 1, "", "no device answered")
	cloudrest(t, environment{discover: heard(sighting{way: "udp", trouble: os.ErrPermission}, garden)}, "discover", "--for", "10ms").
		check(t, 0, "Garden irrigation", "cannot look by udp: permission denied")
}

func TestTableIsBounded(t *testing.T) {
	var table table
	for i := range maxDevices + 10 {
		table.add(sighting{way: "mdns", instance: fmt.Sprint(i), id: tether.NewDeviceID([]byte(fmt.Sprint(i)))})
	}
	if got := len(table.devices()); got != maxDevices {
		t.Errorf("%d devices, want at most %d", got, maxDevices)
	}
}

func TestNotify(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "notify")
	cloudrest(t, environment{}, "notify", "hello").check(t, exitConnect, "", "--fifo PATH or --notify-socket PATH")
	cloudrest(t, environment{}, "notify", "--fifo", path, "hello").check(t, exitConnect, "", "is it running with --fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skipf("no named pipes here: %v", err)
	}
	cloudrest(t, environment{}, "notify", "--fifo", path, "hello").check(t, exitConnect, "", "does not read it")
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cloudrest(t, environment{}, "notify", "--fifo", path, "tank", "is empty").check(t, 0, "", "")
	cloudrest(t, environment{stdin: strings.NewReader("a\n\nb\r\nc")}, "notify", "--fifo", path).check(t, 0, "", "")
	cloudrest(t, environment{}, "notify", "--fifo", path, strings.Repeat("x", maxLine)).check(t, exitConnect, "", "at most 4095")
	f.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	got, err := io.ReadAll(f)
	if want := "tank is empty\na\nb\nc\n"; string(got) != want || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the pipe holds %q, %v, want %q", got, err, want)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cloudrest(t, environment{}, "notify", "--fifo", plain, "hello").check(t, exitConnect, "", "no named pipe")
	cloudrest(t, environment{}, "notify", "--notify-socket", filepath.Join(dir, "none"), "hello").check(t, exitConnect, "", "is the gateway running")
}

func TestPinsFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pins.json")
	for name, text := range map[string]string{"not JSON": "{", "no pin": `[{"id":"` + string(gardenID) + `"}]`, "a damaged pin": `[{"id":"` + string(gardenID) + `","pin":"12","fingerprint":"` + strings.Repeat("a", 64) + `"}]`, "no id": `[{"pin":"` + strings.Repeat("a", 64) + `"}]`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openPins(path); err == nil || !strings.Contains(err.Error(), "repair it") {
			t.Errorf("%s: %v, want advice", name, err)
		}
	}
}

func TestFleetWithoutRelay(t *testing.T) {
	cloudrest(t, environment{}, "fleet", "-n", "2").check(t, 2, "", "--relay is needed")
	r := cloudrest(t, environment{}, "fleet", "-n", "2", "--relay", "ws://127.0.0.1:1", "--for", "300ms", "--json", "--errors")
	r.check(t, 1, `"devices":2,"connected":0,`, "no device could connect")
	r.check(t, 1, `"requests_per_second":0}`, "tether failed")
}

// Whatever a device announces, the table takes it and shows nothing that a terminal obeys.
func FuzzAnnouncement(f *testing.F) {
	f.Add("Garden", "https://10.0.0.9:8443/", strings.Repeat("ab", 32), string(gardenID), "/", uint16(443))
	f.Add("\x1b[2J", "https://[fe80::1%25eth0]:99999/", "", "x", "%zz", uint16(0))
	f.Fuzz(func(t *testing.T, name, link, fp, id, path string, port uint16) {
		e := dnssd.Entry{Instance: name, Port: int(port), Addrs: []netip.Addr{netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("10.0.0.9")},
			TXT: map[string]string{dnssd.KeyName: name, dnssd.KeyURL: link, dnssd.KeyFingerprint: fp, dnssd.KeyID: id, dnssd.KeyPath: path}}
		var table table
		table.add(fromEntry(e))
		table.add(sighting{way: "udp", name: name, mac: path, url: link})
		for _, d := range table.devices() {
			if d.Fingerprint != "" && !trust.ValidPin(d.Fingerprint) {
				t.Errorf("fingerprint = %q", d.Fingerprint)
			}
			if line := strings.Join(row(d), " "); strings.ContainsAny(line, "\x1b\r\n\x07\u009b") {
				t.Errorf("shown: %q", line)
			}
		}
	})
}
