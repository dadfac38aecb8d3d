package tether

import (
	"bytes"
	"net/mail"
	"strings"
	"testing"
)

func TestDeviceID(t *testing.T) {
	id := NewDeviceID([]byte("uid"))
	if len(id) != 64 || len(id.Label()) != 52 {
		t.Fatalf("lengths = %d, %d, want 64, 52", len(id), len(id.Label()))
	}
	for _, text := range []string{string(id), id.Label(), strings.ToUpper(id.Label())} {
		if got, err := ParseDeviceID(text); err != nil || got != id {
			t.Errorf("ParseDeviceID(%q) = %q, %v, want %q", text, got, err, id)
		}
	}
	last := id.Label()[51]
	for _, text := range []string{
		"", strings.ToUpper(string(id)), string(id)[1:], string(id) + "0", strings.Repeat("g", 64),
		id.Label()[:51] + string(rune(last+1)), // a spare bit set: a second name for the same ID
		strings.Repeat("1", 52), "../" + string(id)[3:],
	} {
		if got, err := ParseDeviceID(text); err == nil {
			t.Errorf("ParseDeviceID(%q) = %q, want an error", text, got)
		}
	}
}

func TestEventID(t *testing.T) {
	e := EventID{Epoch: 0xabc, Seq: 17}
	if got, want := e.String(), "0000000000000abc-17"; got != want {
		t.Fatalf("String() = %q, want %q", got, want)
	}
	if got, err := ParseEventID(e.String()); err != nil || got != e {
		t.Errorf("ParseEventID = %v, %v, want %v", got, err, e)
	}
	for _, text := range []string{"", "0000000000000abc-0", "0000000000000abc-017", "0000000000000ABC-17",
		"0000000000000000-1", "0000000000000abc-17 ", "0000000000000abc-99999999999999999999", "abc-17"} {
		if got, err := ParseEventID(text); err == nil {
			t.Errorf("ParseEventID(%q) = %v, want an error", text, got)
		}
	}
}

func TestParseDescriptor(t *testing.T) {
	body := []byte(`{"name":"Garden","manufacturer":"ACME","version":1.10,"revision":["b"],"api":"v1",
		"apiAuthPath":"/auth","apiFactoryConnect":"/factory","email":"a@example.com","color":{"x":[1, 2]} }`)
	d, err := ParseDescriptor(body)
	if err != nil {
		t.Fatal(err)
	}
	if d.Name != "Garden" || d.Version != "1.10" || d.Revision != "" || d.APIFactoryConnect != "/factory" || d.Email != "a@example.com" {
		t.Errorf("fields = %+v", d)
	}
	if !bytes.Equal(d.Raw, body) {
		t.Errorf("Raw changed: %q", d.Raw)
	}
	if len(d.Warnings) != 2 {
		t.Errorf("warnings = %q, want two (version, revision)", d.Warnings)
	}
	for name, bad := range map[string]string{
		"not JSON": "hello", "array": "[]", "cut": `{"name":`, "two values": "{} {}",
		"deep": `{"a":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + "}",
		"long": `{"a":"` + strings.Repeat("x", MaxDescriptor) + `"}`, "not UTF-8": "{\"name\":\"\xff\"}",
	} {
		if _, err := ParseDescriptor([]byte(bad)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, odd := range map[string]string{
		"twice": `{"name":"a","name":"b"}`, "control": `{"name":"a\nb","email":"x"}`, "long field": `{"name":"` + strings.Repeat("n", 600) + `"}`,
	} {
		if d, err := ParseDescriptor([]byte(odd)); err != nil || len(d.Warnings) == 0 || strings.Contains(d.Name, "\n") || len(d.Name) > MaxDescriptorField {
			t.Errorf("%s: %+v, %v, want a warning", name, d, err)
		}
	}
}

// What isAddress takes, net/mail takes too and finds nothing but an address in it; what
// isAddress refuses, net/mail takes only with an IP address behind the @.
func FuzzIsAddress(f *testing.F) {
	for _, s := range []string{
		"a@b", "a.b+c@example.com", "jürgen@bücher.example", "!#$%&'*+-/=?^_`{|}~@x", // good
		"", "@", "a", "a@", "@b", ".a@b", "a.@b", "a..b@c", "a@.b", "a@b.", "a@b..c", "a@b@c", "a b@c", " a@b", "a@b ",
		`"a"@b`, `"a b"@c`, `a\@b`, "<a@b>", "A <a@b>", "a@b (c)", "g:a@b;", "a@b,c@d", "a@[::1]", "a@[127.0.0.1]", "a@\xff", "a\x7f@b", "\u00a0@b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := mail.ParseAddress(s)
		want := err == nil && a.Address == s && !strings.Contains(s, "@[")
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			want = false // text refuses them before
		}
		if got := isAddress(s); got != want {
			t.Errorf("isAddress(%q) = %v, net/mail says %+v, %v", s, got, a, err)
		}
	})
}

func FuzzParseDescriptor(f *testing.F) {
	f.Add([]byte(`{"name":"Garden","version":2,"x":[{"y":null}]}`))
	f.Add([]byte(`{"name":"a","name":"b","email":"a@b"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDescriptor(b)
		if err == nil && !bytes.Equal(d.Raw, b) {
			t.Errorf("Raw = %q, want the input %q", d.Raw, b)
		}
		if len(d.Name) > MaxDescriptorField || strings.ContainsAny(d.Name, "\r\n\x00") {
			t.Errorf("Name = %q", d.Name)
		}
	})
}
