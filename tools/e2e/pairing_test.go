package e2e

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/trust"
	"github.com/cloudrest/cloudrest/tools/sample"
)

// open runs cloudrestd pair --open until the window is open.
func (u *unit) openWindow(answers bool, more ...string) (cli *process, say func(string)) {
	u.t.Helper()
	argv := append([]string{filepath.Join(bin, "cloudrestd"), "pair", "--open", "--state-dir", u.state}, more...)
	if answers {
		person, program := terminal(u.t)
		cli = startOn(u.t, program, u.name+" pair", argv...)
		say = func(line string) {
			if _, err := io.WriteString(person, line+"\n"); err != nil {
				u.t.Fatal(err)
			}
		}
	} else {
		cli = start(u.t, u.name+" pair", argv...)
	}
	cli.says(`The window is open for (60|59) s`)
	return cli, say
}

// asked is what pair --open prints when somebody asks: the code that the device shows.
func asked(cli *process, name string) (code string) {
	cli.t.Helper()
	m := cli.says(`"` + name + `" from [0-9.]+ asks\. Its code: (\d{3}) (\d{3})`)
	return m[1] + m[2]
}

// pairOwner pairs the first client in the window of the first start.
func (u *unit) pairOwner(name string) *person {
	u.t.Helper()
	p := stranger(u.t, u)
	a, status, _, err := p.ask(name)
	if err != nil || status != 200 || a.Client.Role != "owner" {
		u.t.Fatalf("pair %s: %d %+v, %v; want 200 and an owner", name, status, a, err)
	}
	p.token = a.Token
	return p
}

// A device from its box to its second owner.
func TestPairing(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "garden", sampleOrigin(t))
	u.start()
	st := u.eventually("knows its service", func(st unitStatus) error {
		if st.Device.State != "known" {
			return errNotYet
		}
		return nil
	})
	if !st.Pairing.Open || st.Pairing.Paired || st.Pairing.Generation != 0 {
		t.Errorf("a fresh device tells %+v, want an open window, nobody paired, generation 0", st.Pairing)
	}

	// Without a token: only who it is.
	nobody := stranger(t, u)
	nobody.want(200, "GET", "/device", "")
	if r := nobody.want(401, "GET", "/zones", ""); !strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "Bearer") || !strings.Contains(string(r.body), "cloudrestd pair --open") {
		t.Errorf("401 with %q says %s: want a challenge and how to pair", r.Header.Get("WWW-Authenticate"), r.body)
	}
	for _, path := range []string{"/echo", "/.cloudrest/v1/clients", "/.cloudrest/v1/events", "/.cloudrest/v1/security"} {
		nobody.want(401, "GET", path, "")
	}
	nobody.want(401, "POST", "/.cloudrest/v1/reset", "")

	// The first client, with the codes compared by a person at the device's terminal.
	cli, say := u.openWindow(true)
	anna := newPerson(t, u.base(), trust.Client(st.Pin), "")
	a, status, code, err := anna.ask("Anna's phone")
	if err != nil || status != 202 || a.State != "waiting" {
		t.Fatalf("ask: %d %+v, %v; want 202 waiting", status, a, err)
	}
	if shown := asked(cli, "Anna's phone"); shown != code || a.Code != code || a.Pin != st.Pin {
		t.Errorf("the device shows %s and answers code %s, pin %s; the phone has %s and %s", shown, a.Code, a.Pin, code, st.Pin)
	}
	say("y")
	if a, status = anna.decided(a.Request); status != 200 || a.State != "paired" || !strings.HasPrefix(a.Token, "crp_") || a.Client.Role != "owner" || a.Client.Way != "cli" {
		t.Fatalf("after yes: %d %+v, want 200 and an owner's token", status, a)
	}
	if code := cli.ended(); code != 0 || !strings.Contains(cli.output(), `Paired: "Anna's phone" as owner`) {
		t.Errorf("pair --open: exit %d:\n%s", code, cli.output())
	}
	anna.token = a.Token

	t.Run("token", func(t *testing.T) {
		anna.want(200, "GET", "/zones", "")
		var got sample.Echo
		if err := anna.do("GET", "/echo", "").into(200, &got); err != nil || got.Header.Get("Authorization") != "" {
			t.Errorf("the service saw Authorization %q, %v; want none: the token is the gateway's", got.Header.Get("Authorization"), err)
		}
		const basic = "Basic Z2FyZGVuOnJvc2Vz"
		field := []string{"Authorization", basic, "X-CloudREST-Token", anna.token}
		got = sample.Echo{}
		if err := anna.do("GET", "/echo", "", field...).into(200, &got); err != nil || got.Header.Get("Authorization") != basic || got.Header.Get("X-Cloudrest-Token") != "" {
			t.Errorf("the service saw %v, %v; want its own Authorization and no token of ours", got.Header, err)
		}
		if r := nobody.do("GET", "/zones", "", "Cookie", "__Secure-cloudrest="+anna.token); r.StatusCode == 200 {
			t.Errorf("the page's cookie opens the service: %v", r) // its path is /.cloudrest/
		}
	})

	// A guest looks and changes nothing; who is revoked is out at once.
	cli, _ = u.openWindow(false, "--role", "guest")
	guest := stranger(t, u)
	g, status, code, err := guest.ask("Gustav")
	if err != nil || status != 202 {
		t.Fatalf("the guest asks: %d %+v, %v", status, g, err)
	}
	if shown := asked(cli, "Gustav"); shown != code {
		t.Errorf("the device shows %s, the guest %s", shown, code)
	}
	id := cli.says(`cloudrestd pair --approve (\S+);`)[1]
	if exit, said := u.command("pair", "--approve", id); exit != 0 {
		t.Fatalf("pair --approve: exit %d: %s", exit, said)
	}
	if g, status = guest.decided(g.Request); status != 200 || g.Client.Role != "guest" {
		t.Fatalf("the guest: %d %+v", status, g)
	}
	guest.token = g.Token
	if code := cli.ended(); code != 0 {
		t.Errorf("pair --open: exit %d:\n%s", code, cli.output())
	}
	guest.want(200, "GET", "/zones", "")
	guest.want(403, "POST", "/zones/2/start", `{"minutes": 1}`)
	guest.want(403, "GET", "/.cloudrest/v1/security", "")
	guest.want(403, "POST", pairPath+"/window", "")
	anna.want(202, "POST", "/zones/2/start", `{"minutes": 1}`)
	anna.want(200, "POST", "/zones/2/stop", "")

	t.Run("revoke", func(t *testing.T) {
		ended := make(chan string, 2)
		streams := []string{"/events", "/.cloudrest/v1/events"} // the service's and the gateway's
		for _, path := range streams {
			resp, err := guest.client.Do(guest.request(t.Context(), "GET", path, ""))
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("GET %s: %v, %v", path, resp, err)
			}
			defer resp.Body.Close()
			if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
				t.Fatalf("%s: %v before the first byte", path, err)
			}
			go func() {
				io.Copy(io.Discard, resp.Body)
				ended <- path
			}()
		}
		select {
		case path := <-ended:
			t.Fatalf("%s ended by itself", path)
		default:
		}
		if exit, said := u.command("pair", "--revoke", g.Client.ID); exit != 0 {
			t.Fatalf("pair --revoke: exit %d: %s", exit, said)
		}
		for range streams {
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Fatal("a stream of the revoked client goes on")
			}
		}
		guest.want(401, "GET", "/zones", "")
	})

	t.Run("bad tokens", func(t *testing.T) {
		attacker := newPerson(t, u.base(), nil, "127.0.0.2")
		statuses := map[int]int{}
		for i := range 30 {
			attacker.token = fmt.Sprintf("crp_%043d", i)
			statuses[attacker.do("GET", "/zones", "").StatusCode]++
		}
		if statuses[401] == 0 || statuses[429] == 0 || statuses[401]+statuses[429] != 30 {
			t.Errorf("30 wrong tokens were answered %v, want 401 and then 429", statuses)
		}
		anna.want(200, "GET", "/zones", "")
		other := newPerson(t, u.base(), nil, "127.0.0.3")
		other.token = "crp_" + strings.Repeat("x", 43)
		other.want(401, "GET", "/zones", "")
		attacker.token = anna.token // a right one is taken even from there
		attacker.want(200, "GET", "/zones", "")
	})

	t.Run("events", func(t *testing.T) {
		var list []struct{ Event, Client, From, Detail string }
		r := anna.do("GET", "/.cloudrest/v1/security", "")
		if err := r.into(200, &list); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"window_opened", "client_paired", "client_revoked", "bad_token"} {
			if !slices.ContainsFunc(list, func(e struct{ Event, Client, From, Detail string }) bool { return e.Event == want }) {
				t.Errorf("no %s in %s", want, r.body)
			}
		}
		if strings.Contains(string(r.body), "crp_") || strings.Contains(u.run.output(), anna.token) {
			t.Error("a token is in the log")
		}
	})

	// A restart keeps who is paired, and opens nothing.
	u.run.stop(syscall.SIGTERM)
	u.start()
	anna.want(200, "GET", "/zones", "")
	guest.want(401, "GET", "/zones", "")
	if again := u.eventually("is back", func(unitStatus) error { return nil }); again.Pairing.Open || !again.Pairing.Paired || again.ID != st.ID || again.Pin != st.Pin {
		t.Errorf("after a restart: %+v, want the same device with its owner and pairing closed", again)
	}
	if _, said := u.command("pair", "--list"); !strings.Contains(said, "Anna's phone") || strings.Contains(said, "Gustav") {
		t.Errorf("pair --list:\n%s", said)
	}

	// Factory reset while the gateway runs: it comes back by itself, without an owner.
	const private = "the children are alone at home"
	if err := os.WriteFile(filepath.Join(u.dir, "notify"), []byte(private+"\n"), 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the notification is kept", func() error {
		if !u.holds(private) {
			return errNotYet
		}
		return nil
	})
	if exit, said := u.command("reset"); exit == 0 {
		t.Errorf("reset without --yes: exit 0: %s", said)
	}
	if exit, said := u.command("reset", "--yes"); exit != 0 {
		t.Fatalf("reset: exit %d: %s", exit, said)
	}
	after := u.eventually("begins a generation", func(now unitStatus) error {
		if now.Pairing.Generation != 1 {
			return fmt.Errorf("generation %d", now.Pairing.Generation)
		}
		return nil
	})
	if after.ID != st.ID || after.Pin != st.Pin || after.Pairing.Paired || !after.Pairing.Open {
		t.Errorf("after a reset: %+v, want the same ID and pin, nobody paired, pairing open", after)
	}
	anna.want(401, "GET", "/zones", "")
	if u.holds(private) || u.holds("Anna") {
		t.Error("the old owner's notifications or name are still in the state directory")
	}

	// The first start's window asks nobody and lets one in; the next learns who that was.
	bert := u.pairOwner("Bert's phone")
	bert.want(200, "GET", "/zones", "")
	late, status, _, err := stranger(t, u).ask("Mallory")
	if err != nil || status != 409 || !strings.Contains(late.Message, "Bert's phone") || !strings.Contains(late.Message, "pair --revoke") {
		t.Errorf("who comes late: %d %q, %v; want 409 that names Bert's phone and how to undo it", status, late.Message, err)
	}
}

// holds reports whether a text is in a file of the state directory.
func (u *unit) holds(text string) bool {
	u.t.Helper()
	list, err := os.ReadDir(u.state)
	if err != nil {
		u.t.Fatal(err)
	}
	for _, e := range list {
		b, err := os.ReadFile(filepath.Join(u.state, e.Name()))
		if e.Type().IsRegular() && err == nil && strings.Contains(string(b), text) {
			return true
		}
	}
	return false
}

// Two clients race in one window, one of them through a man in the middle: his victim's
// code is not the one that the device shows, and the loser is told who won.
func TestPairingManInTheMiddle(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "garden", sampleOrigin(t))
	u.start()
	trap := trapFor(t, u)
	cli, _ := u.openWindow(false)

	type asker struct {
		*person
		name, code string
		a          pairAnswer
		err        error
	}
	victim := &asker{person: newPerson(t, trap, nil, ""), name: "victim"}
	honest := &asker{person: stranger(t, u), name: "honest"}
	done := make(chan *asker)
	for _, p := range []*asker{victim, honest} {
		go func() {
			p.a, _, p.code, p.err = p.ask(p.name)
			done <- p
		}()
	}
	shown := map[string]string{}
	for range 2 {
		p := <-done
		if p.err != nil || p.a.State != "waiting" {
			t.Fatalf("%s asks: %+v, %v", p.name, p.a, p.err)
		}
		shown[p.name] = asked(cli, p.name)
	}
	if shown["honest"] != honest.code {
		t.Errorf("the device shows %s, the honest client %s", shown["honest"], honest.code)
	}
	if shown["victim"] == victim.code {
		t.Errorf("device and victim both show %s: nobody sees the man in the middle", victim.code)
	}

	var list []struct{ Request, Name string }
	local := u.control("GET", "pair/requests")
	if err := json.Unmarshal(local, &list); err != nil || len(list) != 2 {
		t.Fatalf("waiting: %s, %v; want both", local, err)
	}
	for _, r := range list {
		if r.Name == "honest" {
			if exit, said := u.command("pair", "--approve", r.Request); exit != 0 {
				t.Fatalf("pair --approve: exit %d: %s", exit, said)
			}
		}
	}
	if a, status := honest.decided(honest.a.Request); status != 200 || a.Token == "" {
		t.Errorf("the honest client: %d %+v, want its token", status, a)
	}
	if a, status := victim.decided(victim.a.Request); status != 409 || !strings.Contains(a.Message, `"honest"`) || a.Token != "" {
		t.Errorf("the loser: %d %+v, want 409 that names the winner", status, a)
	}
	if code := cli.ended(); code != 0 {
		t.Errorf("pair --open: exit %d:\n%s", code, cli.output())
	}

	// Who has the pin does not even speak to him.
	st := u.eventually("is there", func(unitStatus) error { return nil })
	if r, err := newPerson(t, trap, trust.Client(st.Pin), "").try("GET", pairPath, ""); err == nil {
		t.Errorf("a client with the pin got %v from the man in the middle", r)
	}
}

// control asks the gateway on its control socket, as an owner at the device does.
func (u *unit) control(method, path string) []byte {
	u.t.Helper()
	r, err := http.NewRequestWithContext(u.t.Context(), method, "http://device/.cloudrest/v1/"+path, nil)
	if err != nil {
		u.t.Fatal(err)
	}
	c := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, Dial: func(string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(u.state, "control.sock"))
	}}}
	resp, err := c.Do(r)
	if err != nil {
		u.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 {
		u.t.Fatalf("%s %s: %s %s, %v", method, path, resp.Status, body, err)
	}
	return body
}

// trapFor is a man in the middle before a unit: he ends TLS with a chain of his own that
// has the right form, and passes everything on over one connection.
func trapFor(t *testing.T, u *unit) (url string) {
	t.Helper()
	dir := t.TempDir()
	ca, cert, key := authority(t, dir, []string{"cloudrest-00000000.local"}, net.IPv4(127, 0, 0, 1))
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pair.Certificate = append(pair.Certificate, certificates(t, ca)...)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	rp := httputil.NewSingleHostReverseProxy(mustURL(t, u.base()))
	out := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxConnsPerHost: 1}
	rp.Transport = out
	s := &http.Server{Handler: rp, ReadHeaderTimeout: patience, ErrorLog: log.New(io.Discard, "", 0)} // who has the pin leaves
	go s.Serve(l)
	t.Cleanup(func() { s.Close(); out.CloseIdleConnections() })
	return "https://" + l.Addr().String()
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// Where nobody confirms, a second asker closes the window for both.
func TestPairingTwoAskers(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "garden", sampleOrigin(t))
	u.start()
	first, second := stranger(t, u), newPerson(t, u.base(), nil, "127.0.0.2")
	nonce := make([]byte, trust.NonceSize)
	commitment := base64.RawURLEncoding.EncodeToString(trust.Commit(nonce))
	var a pairAnswer
	if err := first.do("POST", pairPath, fmt.Sprintf(`{"name":"first","commitment":%q}`, commitment)).into(202, &a); err != nil {
		t.Fatal(err)
	}
	if b, status, _, err := second.ask("second"); err != nil || status != 409 || !strings.Contains(b.Message, `"first"`) || !strings.Contains(b.Message, "127.0.0.2") {
		t.Errorf("the second asker: %d %+v, %v; want 409 that names both", status, b, err)
	}
	first.want(409, "POST", pairPath+"/"+a.Request, fmt.Sprintf(`{"nonce":%q}`, base64.RawURLEncoding.EncodeToString(nonce)))
	st := u.eventually("is there", func(unitStatus) error { return nil })
	if st.Pairing.Open || st.Pairing.Paired {
		t.Errorf("after two askers: %+v, want pairing closed and nobody paired", st.Pairing)
	}
	if log := string(u.control("GET", "security")); strings.Count(log, "pair_refused") != 2 {
		t.Errorf("the security events are %s, want both recorded", log)
	}
}

// Our own client pairs, keeps the device's key with its token, and leaves both alone when
// another key is shown.
func TestPairingOfPrograms(t *testing.T) {
	t.Parallel()
	u := newUnit(t, "garden", sampleOrigin(t))
	u.start("--name", "Garden irrigation")
	st := u.eventually("is there", func(unitStatus) error { return nil })
	cloudrest := func(file string, args ...string) (int, string) {
		t.Helper()
		return program(t, "cloudrest", append(args, "--pins", filepath.Join(u.dir, file))...)
	}
	cli, say := u.openWindow(true)
	laptop := start(t, "cloudrest pair", filepath.Join(bin, "cloudrest"), "pair", u.base(), "--name", "laptop", "--pins", filepath.Join(u.dir, "pins"))
	code := asked(cli, "laptop")
	if m := laptop.says(`(\d{3}) ?(\d{3})\b`); m[1]+m[2] != code {
		t.Errorf("cloudrest shows %s, the device %s", m[0], code)
	}
	say("y")
	if code := laptop.ended(); code != 0 || !strings.Contains(laptop.output(), "as owner") {
		t.Fatalf("cloudrest pair: exit %d:\n%s", code, laptop.output())
	}
	if code, said := cloudrest("pins", "get", u.base()+"/zones"); code != 0 || !strings.Contains(said, "Roses") {
		t.Errorf("get with the token: exit %d: %s", code, said)
	}
	if code, said := cloudrest("nobody's pins", "get", u.base()+"/zones", "--fingerprint", st.Pin); code != 1 || !strings.Contains(said, "paired clients only") {
		t.Errorf("get without a token: exit %d: %s; want 1 and how to pair", code, said)
	}

	// An invitation needs no window, and pairs once.
	var invitation struct{ URL string }
	if code, said := u.command("pair", "--invite", "--role", "guest", "--json"); code != 0 || json.Unmarshal([]byte(said), &invitation) != nil {
		t.Fatalf("pair --invite: exit %d: %s", code, said)
	}
	if code, said := cloudrest("guest's pins", "pair", invitation.URL); code != 0 || !strings.Contains(said, "as guest") {
		t.Errorf("the invitation: exit %d: %s", code, said)
	}
	if code, said := cloudrest("other pins", "pair", invitation.URL); code == 0 {
		t.Errorf("the invitation pairs twice: %s", said)
	}
	if code, said := cloudrest("guest's pins", "post", u.base()+"/zones/2/start"); code != 1 || !strings.Contains(said, "guest") {
		t.Errorf("a guest changes something: exit %d: %s", code, said)
	}

	// Another key in the same place, as after a replaced flash: refused, in words.
	u.run.stop(syscall.SIGTERM)
	if err := os.Remove(filepath.Join(u.state, "lan-ca.pem")); err != nil {
		t.Fatal(err)
	}
	u.start("--name", "Garden irrigation")
	now := u.eventually("is back", func(unitStatus) error { return nil })
	if code, said := cloudrest("pins", "get", u.base()+"/zones"); code != 2 || !strings.Contains(said, st.Pin) || !strings.Contains(said, now.Pin) || !strings.Contains(said, "cloudrest forget ") {
		t.Errorf("with another key: exit %d: %s; want 2, both pins and what to do", code, said)
	}
	if strings.Contains(u.run.output(), "bad_token") {
		t.Error("the token was sent to a device with another key")
	}
	if code, said := cloudrest("pins", "forget", st.ID[:8]); code != 0 {
		t.Errorf("forget: exit %d: %s", code, said)
	}
	if code, said := cloudrest("pins", "get", u.base()+"/device", "--fingerprint", now.Pin); code != 0 {
		t.Errorf("after forget: exit %d: %s", code, said)
	}
}
