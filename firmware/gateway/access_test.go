package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/board/boardtest"
	"github.com/cloudrest/cloudrest/firmware/internal/statefile"
)

// ask sends JSON with a token, if there is one, and reads the JSON answer into v.
func ask(t *testing.T, c *http.Client, method, url, token, body string, v any) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if v != nil && resp.StatusCode < 300 {
		if err := json.Unmarshal(text, v); err != nil {
			t.Fatalf("%s %s = %s: %v", method, url, text, err)
		}
	}
	return resp.StatusCode
}

func (r *running) own(path string) string {
	return strings.TrimSuffix(r.URL(), "/") + "/.cloudrest/v1/" + path
}

// pair pairs in an open window that needs no confirmation.
func (r *running) pair(t *testing.T, name string) (token string) {
	t.Helper()
	var answer struct{ State, Token string }
	if code := ask(t, r.client, "POST", r.own("pair"), "", `{"name":"`+name+`"}`, &answer); code != 200 || answer.State != "paired" {
		t.Fatalf("pair %s = %d, %+v", name, code, answer)
	}
	return answer.Token
}

// What a device's life looks like to its people: first start, a token, the control socket,
// the button, and a factory reset that puts everybody out.
func TestPairedAccess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	button, led := boardtest.NewButton(), &boardtest.LED{}
	cfg := Config{OriginHandler: garden(), Access: AccessPaired, StateDir: dir, Button: button, LED: led}
	r := start(t, cfg)
	base := strings.TrimSuffix(r.URL(), "/")

	for path, want := range map[string]int{
		"/device": 200, "/echo/x": 401, "/.cloudrest/": 200, "/.cloudrest/v1/status": 200, "/.cloudrest/v1/pair": 200,
		"/.cloudrest/v1/events": 401, "/.cloudrest/v1/clients": 401, "/.cloudrest/v1/security": 401, "/.cloudrest/v1/none": 404, "/.cloudrest/v1/certificate/request": 404,
	} {
		if got := ask(t, r.client, "GET", base+path, "", "", nil); got != want {
			t.Errorf("without a token GET %s = %d, want %d", path, got, want)
		}
	}
	if got := ask(t, r.client, "POST", r.own("reset"), "", "", nil); got != 401 {
		t.Errorf("reset without a token = %d, want 401", got)
	}
	if st := r.Status().Pairing; st.Paired || !st.Open {
		t.Errorf("a fresh device's status = %+v, want an open window and nobody paired", st)
	}

	owner := r.pair(t, "first phone")
	if got := ask(t, r.client, "POST", base+"/echo/x", owner, "hello", nil); got != 200 {
		t.Errorf("with the token = %d, want 200", got)
	}
	if st := r.Status().Pairing; !st.Paired || st.Open {
		t.Errorf("status after pairing = %+v", st)
	}

	// The control socket has an owner's rights and needs no token.
	local := &http.Client{Transport: socket(dir)}
	var list struct {
		Clients []struct{ ID, Name, Role, Way string }
	}
	if code := ask(t, local, "GET", "http://device/.cloudrest/v1/clients", "", "", &list); code != 200 || len(list.Clients) != 1 ||
		list.Clients[0].Name != "first phone" || list.Clients[0].Role != "owner" || list.Clients[0].Way != "first-start" {
		t.Errorf("clients over the socket = %d, %+v", code, list)
	}

	// The button opens the window again.
	if err := button.Press(t.Context(), board.Short); err != nil {
		t.Fatal(err)
	}
	r.until(t, "the window is open", func(s Status) bool { return s.Pairing.Open })
	second := r.pair(t, "second phone")
	if got := ask(t, r.client, "DELETE", r.own("clients/"+list.Clients[0].ID), second, "", nil); got != 204 {
		t.Errorf("revoke by another owner = %d, want 204", got)
	}
	if got := ask(t, r.client, "GET", base+"/echo/x", owner, "", nil); got != 401 {
		t.Errorf("with a revoked token = %d, want 401", got)
	}
	r.until(t, "people are told", func(s Status) bool { return s.Notifications.Appended >= 3 })
	if len(led.Changes()) == 0 {
		t.Error("the LED never shone")
	}

	// Ten seconds on the button: Run ends, the next start is another generation's first.
	id, pin := r.ID(), r.Fingerprint()
	if err := button.Press(t.Context(), board.Long); err != nil {
		t.Fatal(err)
	}
	if err := r.wait(t); !errors.Is(err, ErrFactoryReset) {
		t.Fatalf("Run after a long press = %v, want ErrFactoryReset", err)
	}
	<-r.ended
	r.ended <- nil
	again := start(t, cfg)
	if again.ID() != id || again.Fingerprint() != pin {
		t.Errorf("after the reset ID %s pin %s, want the same as before: %s %s", again.ID(), again.Fingerprint(), id, pin)
	}
	st := again.Status()
	if st.Pairing.Paired || !st.Pairing.Open || st.Pairing.Generation != 1 || st.Notifications.Kept != 0 {
		t.Errorf("status after the reset = %+v, %+v", st.Pairing, st.Notifications)
	}
	if got := ask(t, again.client, "GET", strings.TrimSuffix(again.URL(), "/")+"/echo/x", second, "", nil); got != 401 {
		t.Errorf("a token of the last generation = %d, want 401", got)
	}
	var events []struct{ Event string }
	ask(t, local, "GET", "http://device/.cloudrest/v1/security", "", "", &events)
	if !slices.ContainsFunc(events, func(e struct{ Event string }) bool { return e.Event == eventReset }) {
		t.Errorf("security events = %+v, want the reset among them", events)
	}
}

// A power cut at any moment of a reset: it is either not begun, or finished by the next start.
func TestResetSurvivesPowerCut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	cfg := Config{OriginHandler: garden(), Access: AccessPaired, StateDir: dir}
	r := start(t, cfg)
	token := r.pair(t, "phone")
	if err := FactoryReset(dir); !errors.Is(err, statefile.ErrLocked) {
		t.Errorf("offline reset beside a gateway = %v, want ErrLocked", err)
	}
	if _, err := decideReset(dir, 0); err != nil { // decided, and then the power went
		t.Fatal(err)
	}
	r.stop()
	if err := r.wait(t); err != nil {
		t.Fatal(err)
	}
	r = start(t, cfg)
	if st := r.Status().Pairing; st.Paired || st.Generation != 1 {
		t.Errorf("after the power cut = %+v, want generation 1 and nobody paired", st)
	}
	if got := ask(t, r.client, "GET", strings.TrimSuffix(r.URL(), "/")+"/echo/x", token, "", nil); got != 401 {
		t.Errorf("old token = %d, want 401", got)
	}
	r.stop()
	if err := r.wait(t); err != nil {
		t.Fatal(err)
	}
	if err := FactoryReset(dir); err != nil {
		t.Fatal(err)
	}
	if g, _, err := readGeneration(dir); err != nil || g != (generation{Number: 2}) {
		t.Errorf("generation = %+v, %v, want 2", g, err)
	}
	if err := statefile.Write(filepath.Join(dir, resetFile), []byte("{")); err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), resetFile) {
		t.Errorf("New with a damaged %s = %v, want an error that names it", resetFile, err)
	}
}

// socket is the control socket as a transport.
type socket string

func (s socket) RoundTrip(r *http.Request) (*http.Response, error) { return Control(string(s), r) }

// The socket works below a path that is longer than a UNIX socket's may be, and says so when
// nobody listens.
func TestControlSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 25)+"state")
	get := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", "http://device/.cloudrest/v1/clients", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := Control(dir, req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("status %d", resp.StatusCode)
		}
		return nil
	}
	if err := get(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no gateway: %v, want ErrNotRunning", err)
	}
	r := start(t, Config{OriginHandler: garden(), Access: AccessPaired, StateDir: dir})
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := get()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	r.stop()
	if err := r.wait(t); err != nil {
		t.Fatal(err)
	}
	if err := get(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after the end: %v, want ErrNotRunning", err)
	}
}
