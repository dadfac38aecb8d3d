package device

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/update"
)

// machine is a board in memory.
type machine struct {
	slot     map[string][]byte
	phase    string
	tried    int
	restarts int
	corrupt  bool // the card gives back other bytes than were written
}

func (m *machine) Room(part string) int64 {
	if part == "root" {
		return 1 << 20
	}
	return 0
}
func (m *machine) Complete(parts []string) bool { return len(parts) == 1 }
func (m *machine) Put(part string, size int64, r io.Reader) error {
	b := make([]byte, size)
	_, err := io.ReadFull(r, b)
	if m.slot == nil {
		m.slot = map[string][]byte{}
	}
	m.slot[part] = b
	return err
}
func (m *machine) Verify(part string, size int64, sum [sha256.Size]byte) error {
	if m.corrupt || sha256.Sum256(m.slot[part]) != sum {
		return update.ErrDigest
	}
	return nil
}
func (m *machine) State(s *State) { s.Phase, s.Boot = m.phase, "1" }
func (m *machine) Try() error     { m.tried++; return nil }
func (m *machine) Restart()       { m.restarts++ }
func (m *machine) Run(context.Context, []string) ([]byte, error) {
	return []byte("invitation\n"), nil
}
func (m *machine) Log(context.Context, string) ([]byte, error) { return nil, errors.New("none") }

const installed = 1000 // sequence

// device returns a server, its machine, the key that signs for it.
func device(t *testing.T, admin *Admin) (*Server, *machine, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{phase: Normal}
	s := &Server{Info: &Info{Board: "zero-w", Version: "v1", Sequence: installed, Hostname: "garden", UpdateKey: public, Admin: admin, Pair: []string{"pair"}},
		Memory: Memory(t.TempDir() + "/memory"), Machine: m}
	if err := s.Memory.Started(installed); err != nil {
		t.Fatal(err)
	}
	return s, m, private
}

func bundle(t *testing.T, key ed25519.PrivateKey, content string, edit func(*update.Manifest)) []byte {
	t.Helper()
	m := &update.Manifest{Format: update.Format, Name: update.Name, Board: "zero-w", Version: "v2", Sequence: installed + 1,
		Files: []update.Part{{Name: "root", Size: int64(len(content)), SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte(content)))}}}
	if edit != nil {
		edit(m)
	}
	var b bytes.Buffer
	if err := update.Write(&b, m, key, func(string) io.Reader { return strings.NewReader(content) }); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func ask(h http.Handler, method, path, password string, body []byte) (int, string) {
	r := newRequest(method, path, body)
	if password != "" {
		r.SetBasicAuth(User, password)
	}
	w := &recorder{header: http.Header{}, status: 200}
	h.ServeHTTP(w, r)
	return w.status, w.body.String()
}

func newRequest(method, path string, body []byte) *http.Request {
	r, err := http.NewRequest(method, path, bytes.NewReader(body))
	if err != nil {
		panic(err)
	}
	return r
}

type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

// TestRefuses offers updates that must not be started.
func TestRefuses(t *testing.T) {
	_, stranger, _ := ed25519.GenerateKey(nil)
	for _, c := range []struct {
		name string
		make func(t *testing.T, key ed25519.PrivateKey) []byte
		want error
	}{
		{"signed by somebody else", func(t *testing.T, key ed25519.PrivateKey) []byte { return bundle(t, stranger, "new root", nil) }, update.ErrSignature},
		{"one bit of the manifest changed", func(t *testing.T, key ed25519.PrivateKey) []byte {
			b := bundle(t, key, "new root", nil)
			b[bytes.Index(b, []byte(`"v2"`))+2] ^= 1
			return b
		}, update.ErrSignature},
		{"other bytes than were signed", func(t *testing.T, key ed25519.PrivateKey) []byte {
			return bytes.Replace(bundle(t, key, "new root", nil), []byte("new root"), []byte("NEW root"), 1)
		}, update.ErrDigest},
		{"cut off in a part", func(t *testing.T, key ed25519.PrivateKey) []byte {
			b := bundle(t, key, strings.Repeat("new root", 1000), nil)
			return b[:len(b)-6000]
		}, update.ErrDigest},
		{"cut off before a part", func(t *testing.T, key ed25519.PrivateKey) []byte {
			b := bundle(t, key, "new root", nil)
			return b[:bytes.Index(b, []byte("root\x00"))]
		}, update.ErrDigest},
		{"nothing", func(t *testing.T, key ed25519.PrivateKey) []byte { return nil }, update.ErrDigest},
		{"of another board", func(t *testing.T, key ed25519.PrivateKey) []byte {
			return bundle(t, key, "new root", func(m *update.Manifest) { m.Board = "pi" })
		}, update.ErrOther},
		{"a manifest of a release", func(t *testing.T, key ed25519.PrivateKey) []byte {
			return bundle(t, key, "new root", func(m *update.Manifest) { m.Name = "cloudrest" })
		}, update.ErrOther},
		{"too large", func(t *testing.T, key ed25519.PrivateKey) []byte {
			return bundle(t, key, strings.Repeat("x", 2<<20), nil)
		}, update.ErrOther},
		{"a part that does not exist", func(t *testing.T, key ed25519.PrivateKey) []byte {
			return bundle(t, key, "new root", func(m *update.Manifest) { m.Files[0].Name = "../root" })
		}, update.ErrOther},
		{"older", func(t *testing.T, key ed25519.PrivateKey) []byte {
			return bundle(t, key, "new root", func(m *update.Manifest) { m.Sequence = installed - 1 })
		}, update.ErrOlder},
		{"a downgrade for devices before this one", func(t *testing.T, key ed25519.PrivateKey) []byte {
			return bundle(t, key, "new root", func(m *update.Manifest) { m.Sequence, m.DowngradeFrom = installed-1, installed-1 })
		}, update.ErrOlder},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, m, key := device(t, nil)
			status, text := ask(s.Handler(), "POST", "/v1/update", "", c.make(t, key))
			if status != http.StatusUnprocessableEntity || !strings.Contains(text, c.want.Error()) {
				t.Errorf("%d %q, want %d and %q", status, text, http.StatusUnprocessableEntity, c.want)
			}
			if c.want != update.ErrDigest {
				head, err := update.Head(bytes.NewReader(c.make(t, key)))
				if err != nil {
					t.Fatal(err)
				}
				want := http.StatusUnprocessableEntity
				if strings.Contains(c.name, "part") || c.name == "too large" { // which depends on the board
					want = http.StatusOK
				}
				if status, _ := ask(s.Handler(), "POST", "/v1/check", "", head); status != want {
					t.Errorf("check: %d, want %d", status, want)
				}
			}
			if m.tried != 0 || m.restarts != 0 {
				t.Errorf("tried %d, restarted %d, want nothing", m.tried, m.restarts)
			}
			if c.want != update.ErrDigest && m.slot != nil {
				t.Error("something was written before the manifest was found right")
			}
			if newest, err := s.Memory.Newest(0); newest != installed || err != nil {
				t.Errorf("the newest version is %d, %v, want %d", newest, err, installed)
			}
			// The right one is still taken.
			if status, text := ask(s.Handler(), "POST", "/v1/update", "", bundle(t, key, "new root", nil)); status != 200 || m.tried != 1 || m.restarts != 1 {
				t.Errorf("the right one after it: %d %q, tried %d, restarted %d", status, text, m.tried, m.restarts)
			}
		})
	}
}

// TestTakes follows an update from the offer to the verdict, and back.
func TestTakes(t *testing.T) {
	admin := &Admin{Password: "secret"}
	s, m, key := device(t, admin)
	h := s.Handler()
	same := func(m *update.Manifest) { m.Sequence = installed }
	if status, _ := ask(h, "POST", "/v1/update", "", bundle(t, key, "new root", same)); status != http.StatusUnauthorized {
		t.Errorf("without the password: %d, want 401", status)
	}
	if status, _ := ask(h, "POST", "/v1/pair", "wrong", nil); status != http.StatusUnauthorized {
		t.Errorf("pair with a wrong password: %d, want 401", status)
	}
	if status, text := ask(h, "POST", "/v1/pair", "secret", nil); status != 200 || text != "invitation\n" {
		t.Errorf("pair: %d %q", status, text)
	}
	if status, text := ask(h, "POST", "/v1/update", "secret", bundle(t, key, "new root", nil)); status != 200 || string(m.slot["root"]) != "new root" || m.tried != 1 {
		t.Fatalf("update: %d %q, slot %q, tried %d", status, text, m.slot["root"], m.tried)
	}
	if status, _ := ask(h, "POST", "/v1/update", "secret", bundle(t, key, "newer", nil)); status != http.StatusConflict || string(m.slot["root"]) != "new root" {
		t.Errorf("another one before the restart: %d, slot %q, want 409 and the slot as it was", status, m.slot["root"])
	}

	// The new version on trial.
	m.phase = Trial
	next := &Server{Info: &Info{Board: "zero-w", Version: "v2", Sequence: installed + 1, UpdateKey: s.Info.UpdateKey, Admin: admin}, Memory: s.Memory, Machine: m}
	if status, _ := ask(next.Handler(), "POST", "/v1/back", "secret", nil); status != http.StatusConflict {
		t.Errorf("back on trial: %d, want 409", status)
	}
	if got, _ := s.Memory.Newest(0); got != installed {
		t.Errorf("on trial the newest is %d, want %d", got, installed)
	}
	if err := s.Memory.Settle(installed + 1); err != nil {
		t.Fatal(err)
	}
	m.phase = Normal
	if got, _ := s.Memory.Newest(0); got != installed+1 {
		t.Errorf("after the verdict the newest is %d, want %d", got, installed+1)
	}
	// Back to the first version, which is older; that is no update, so the newest stays.
	if status, _ := ask(next.Handler(), "POST", "/v1/back", "secret", nil); status != 200 || m.tried != 2 {
		t.Errorf("back: %d, tried %d, want 200 and 2", status, m.tried)
	}
	if err := s.Memory.Settle(installed); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Memory.Newest(0); got != installed+1 {
		t.Errorf("after going back the newest is %d, want %d", got, installed+1)
	}
}

// TestDowngrade: with a signature that says so, and only up to the version that it names.
func TestDowngrade(t *testing.T) {
	s, _, key := device(t, nil)
	old := bundle(t, key, "old root", func(m *update.Manifest) { m.Sequence, m.DowngradeFrom = installed-10, installed })
	if status, text := ask(s.Handler(), "POST", "/v1/update", "", old); status != 200 {
		t.Fatalf("a signed downgrade: %d %q", status, text)
	}
	if err := s.Memory.Settle(installed - 10); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Memory.Newest(0); got != installed-10 {
		t.Errorf("after a downgrade the newest is %d, want %d", got, installed-10)
	}
	if err := s.Memory.Started(installed - 10); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Memory.Newest(0); got != installed-10 {
		t.Errorf("after the next start the newest is %d, want %d", got, installed-10)
	}
	// Somebody keeps the signed downgrade and offers it to a device that was mended since.
	if err := s.Memory.Started(installed + 1); err != nil {
		t.Fatal(err)
	}
	again := &Server{Info: s.Info, Memory: s.Memory, Machine: s.Machine}
	if status, text := ask(again.Handler(), "POST", "/v1/update", "", old); status != http.StatusUnprocessableEntity || !strings.Contains(text, update.ErrOlder.Error()) {
		t.Errorf("the same downgrade later: %d %q, want 422", status, text)
	}
}

// TestWithoutPassword: an image that may be published gives nobody power.
func TestWithoutPassword(t *testing.T) {
	s, m, key := device(t, nil)
	for _, path := range []string{"/v1/pair", "/v1/back", "/v1/restart"} {
		if status, _ := ask(s.Handler(), "POST", path, "", nil); status != http.StatusForbidden {
			t.Errorf("%s: %d, want 403", path, status)
		}
	}
	same := bundle(t, key, "new root", func(m *update.Manifest) { m.Sequence = installed })
	if status, text := ask(s.Handler(), "POST", "/v1/update", "", same); status != http.StatusUnprocessableEntity || m.slot != nil {
		t.Errorf("the same version once more: %d %q, want 422", status, text)
	}
	s.Info.UpdateKey = nil
	if status, _ := ask(s.Handler(), "POST", "/v1/update", "", bundle(t, key, "new root", nil)); status != http.StatusForbidden {
		t.Errorf("without an update key: %d, want 403", status)
	}
}

// TestBadCard: what comes back from the card is not what was written.
func TestBadCard(t *testing.T) {
	s, m, key := device(t, nil)
	m.corrupt = true
	if status, text := ask(s.Handler(), "POST", "/v1/update", "", bundle(t, key, "new root", nil)); status != http.StatusUnprocessableEntity || m.tried != 0 {
		t.Errorf("%d %q, tried %d, want 422 and 0", status, text, m.tried)
	}
	if !s.Memory.Incomplete() {
		t.Error("the other slot counts as whole")
	}
	s.Info.Admin = &Admin{Password: "secret"}
	if status, _ := ask(s.Handler(), "POST", "/v1/back", "secret", nil); status != http.StatusConflict {
		t.Errorf("back to half a version: %d, want 409", status)
	}
}

func TestFailed(t *testing.T) {
	m := Memory(t.TempDir())
	if err := m.Begin(); err != nil {
		t.Fatal(err)
	}
	if err := m.Complete(5); err != nil {
		t.Fatal(err)
	}
	if m.Failed() == "" {
		t.Error("a trial without a verdict: want a reason")
	}
	if err := m.GiveUp(errors.New("too slow")); err != nil {
		t.Fatal(err)
	}
	if got, want := m.Failed(), "too slow"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := m.Settle(5); err != nil {
		t.Fatal(err)
	}
	if got := m.Failed(); got != "" {
		t.Errorf("after a good one: %q, want nothing", got)
	}
}

// TestSlowStranger: somebody who begins an update and does not go on keeps nobody waiting.
func TestSlowStranger(t *testing.T) {
	s, m, key := device(t, nil)
	body, stranger := io.Pipe()
	r := newRequest("POST", "/v1/update", nil)
	r.Body = body
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Handler().ServeHTTP(&recorder{header: http.Header{}, status: 200}, r)
	}()
	stranger.Write([]byte("m")) // returns when it was read
	if status, text := ask(s.Handler(), "POST", "/v1/update", "", bundle(t, key, "new root", nil)); status != 200 || m.tried != 1 {
		t.Errorf("the owner's update: %d %q, want 200", status, text)
	}
	stranger.Close()
	<-ended
}

// TestRun serves over TLS.
func TestRun(t *testing.T) {
	s, _, _ := device(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, l) }()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	for range 2 * maxCalls { // each gives its place back
		res, err := client.Get("https://" + l.Addr().String() + "/v1/state")
		if err != nil {
			t.Fatal(err)
		}
		var st State
		err = json.NewDecoder(res.Body).Decode(&st)
		res.Body.Close()
		if want := (State{API: 1, Boot: "1", Board: "zero-w", Hostname: "garden", Version: "v1", Sequence: installed, Newest: installed, Phase: Normal, Updates: true}); err != nil || st != want {
			t.Fatalf("state %+v, %v, want %+v", st, err, want)
		}
		client.CloseIdleConnections()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}

// FuzzReceive looks for bundles that get through without the key.
func FuzzReceive(f *testing.F) {
	public, private, _ := ed25519.GenerateKey(nil)
	m := &update.Manifest{Format: update.Format, Name: update.Name, Board: "zero-w", Files: []update.Part{{Name: "root", Size: 1, SHA256: "00"}}}
	var b bytes.Buffer
	update.Write(&b, m, private, func(string) io.Reader { return strings.NewReader("x") })
	f.Add(b.Bytes())
	var empty bytes.Buffer
	tar.NewWriter(&empty).Close()
	f.Add(empty.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &machine{}
		_, err := update.Receive(bytes.NewReader(b), update.Device{Key: public, Board: "zero-w"}, m, func(*update.Manifest) error { return nil })
		if err == nil {
			t.Error("taken")
		}
	})
}
