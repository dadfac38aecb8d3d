package pairing

import (
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// FuzzBodies sends any body to every resource that takes one, as owner: nothing but the answers that are meant to be.
func FuzzBodies(f *testing.F) {
	for _, s := range []string{
		``, `{}`, `null`, `[]`, `{"name":"a"}`, `{"name":"a","commitment":"AAAA","secret":"x","role":"member","cookie":true}`,
		`{"nonce":"AAAA"}`, `{"role":"owner"}`, `{"role":"guest","minutes":10}`, `{"minutes":1e9}`, `{"token":"crp_x"}`,
		`{"name":"\u0000\ud800","expires":"2030-01-01T00:00:00Z"}`, `{"expires":null}`, `{"expires":{}}`, `{"name":["a"]}`, strings.Repeat("[", 4000),
	} {
		f.Add(s)
	}
	cs := connection(f)
	f.Fuzz(func(t *testing.T, body string) {
		d := open(t, &memory{}, nil)
		token, id := d.pairAs(t, Owner, cs)
		_, other := d.pairAs(t, Guest, cs)
		for _, path := range []string{"POST pair", "POST pair/window", "POST pair", "POST pair/x", "POST pair/x/approve", "POST invitations", "POST session", "PATCH clients/" + id, "PATCH clients/" + other} {
			method, path, _ := strings.Cut(path, " ")
			g := d.do(method, path, body, call{token: token, tls: cs})
			if g.status/100 != 2 && (g.status < 400 || g.status >= 500 || g.body.Message == "") {
				t.Fatalf("%s %s with %q: %v", method, path, body, g)
			}
		}
		for _, c := range d.Clients() {
			if c.Role.rank() == 0 || c.Name != cleanName(c.Name) {
				t.Fatalf("%q made %+v", body, c)
			}
			r, err := decodeClient(c.ID, d.store.values[clientKey+c.ID], 1)
			if err != nil || r.Name != c.Name || r.Role != c.Role || !r.Expires.Equal(c.Expires) {
				t.Fatalf("%q: stored %+v, %v, want %+v", body, r, err, c)
			}
		}
		if d.clients.Load().owners() == 0 {
			t.Fatalf("%q: no owner is left: %+v", body, d.Clients())
		}
	})
}

// FuzzToken: whatever the fields are, reading them finds a token only where one may be, and after strip none is found,
// nothing else is lost, and stripping again changes nothing.
func FuzzToken(f *testing.F) {
	for _, s := range [][3]string{
		{"", "Bearer crp_abc", ""}, {"crp_a", "Basic x", "a=1"}, {"", "", CookieName + "=crp_a; b=2"}, {"", "bearer\tcrp_x", " ; ;" + CookieName},
		{"", "Bearer  crp_", CookieName + "x=1;x" + CookieName + "=2"}, {"", "Bearer", `a="; ` + CookieName + `=1"`},
	} {
		f.Add(s[0], s[1], s[2], true)
	}
	f.Fuzz(func(t *testing.T, token, auth, cookie string, own bool) {
		path := "/x"
		if own {
			path = "/.cloudrest/v1/x"
		}
		r := httptest.NewRequest("GET", path, nil)
		for name, v := range map[string]string{HeaderToken: token, "Authorization": auth, "Cookie": cookie} {
			if v != "" {
				r.Header[name] = []string{v}
			}
		}
		got, where := tokenOf(r)
		if where == inCookie && !own || where == nowhere && got != "" || token != "" && got != token {
			t.Fatalf("found %q in place %d", got, where)
		}
		strip(r.Header)
		if got, where := tokenOf(r); where != nowhere {
			t.Fatalf("found %q in place %d after strip: %v", got, where, r.Header)
		}
		if v := r.Header["Authorization"]; auth != "" && v == nil && !strings.Contains(auth, tokenPrefix) {
			t.Fatalf("%q is gone", auth)
		}
		// What is left of the cookies are the others, as they were.
		var others []string
		for part := range strings.SplitSeq(cookie, ";") {
			if name, _, ok := strings.Cut(part, "="); !ok || strings.Trim(name, " \t") != CookieName {
				others = append(others, part)
			}
		}
		left := strings.Join(r.Header["Cookie"], "")
		if all := strings.Join(others, ";"); left != all && left != strings.TrimLeft(all, " \t") {
			t.Fatalf("cookies %q became %q, want %q", cookie, left, all)
		}
		once := r.Header.Clone()
		strip(r.Header)
		if !reflect.DeepEqual(r.Header, once) && (len(r.Header) > 0 || len(once) > 0) {
			t.Fatalf("twice: %v, once: %v", r.Header, once)
		}
	})
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"", "Pixel 8", "a\x00b", "\u202e\u2066x", strings.Repeat("é", 70), "\xff", "  a  b  ", "👩‍👩‍👧"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := cleanName(s)
		if got == "" || len(got) > MaxName || !utf8.ValidString(got) || strings.TrimSpace(got) != got || cleanName(got) != got {
			t.Fatalf("cleanName(%q) = %q", s, got)
		}
		for _, r := range got {
			if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
				t.Fatalf("cleanName(%q) = %q with %U", s, got, r)
			}
		}
	})
}

// FuzzRecord: a record of the store is a client as it was written, or none.
func FuzzRecord(f *testing.F) {
	f.Add("a", []byte(`{"gen":1,"name":"x","role":"owner","hash":"`+strings.Repeat("00", 32)+`","created":1,"way":"cli"}`))
	f.Add("", []byte(`{}`))
	f.Fuzz(func(t *testing.T, id string, value []byte) {
		r, err := decodeClient(id, value, 1)
		if err != nil {
			return
		}
		again, err := decodeClient(id, r.encode(1), 1)
		if err != nil || again.client() != r.client() || again.hash != r.hash {
			t.Fatalf("%s: %+v, then %+v, %v", value, r.Client, again, err)
		}
		if table := (table{r.hash: r}); table.find("crp_") != nil {
			t.Fatal("a token without bits is found")
		}
	})
}
