package dnssd

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cloudrest/cloudrest/firmware/discovery/dns"
	"github.com/cloudrest/cloudrest/tether"
)

const testID = tether.DeviceID("1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f809")

func question(name string, kind uint16) *dns.Msg {
	return &dns.Msg{Question: []dns.Question{{Name: name, Qtype: kind, Qclass: dns.ClassINET}}}
}

func testInfo() Info {
	return Info{
		ID: testID, Name: "Jardín de Ana", API: "2.1", Version: "1.4.0", Port: 8443, Path: "/api/",
		Fingerprint: strings.Repeat("ab", 32),
	}
}

func TestInstanceName(t *testing.T) {
	long := strings.Repeat("é", 40)
	for _, tt := range []struct {
		name string
		n    int
		want string
	}{
		{"Garden", 1, "Garden 1a2b3c4d"},
		{"Garden", 2, "Garden 1a2b3c4d (2)"},
		{"", 1, "CloudREST 1a2b3c4d"},
		{"...", 1, "CloudREST 1a2b3c4d"},
		{".a.b.", 1, "a.b 1a2b3c4d"},
		{"a\nb\x00\xff", 1, "a b 1a2b3c4d"},
		{long, 1, strings.Repeat("é", 27) + " 1a2b3c4d"},
		{long, 12, strings.Repeat("é", 24) + " 1a2b3c4d (12)"},
	} {
		if got := instanceName(tt.name, testID, tt.n); got != tt.want || len(got) > maxLabel {
			t.Errorf("instanceName(%q, %d) = %q (%d bytes), want %q", tt.name, tt.n, got, len(got), tt.want)
		}
	}
	if got := HostName(testID); got != "cloudrest-1a2b3c4d.local" {
		t.Errorf("HostName = %q", got)
	}
	if got := hostName(testID, 3); got != "cloudrest-1a2b3c4d-3.local" {
		t.Errorf("third host name = %q", got)
	}
}

// Whatever a device is called, its full name is what package dns makes of it after a
// round over the wire: zeroconf compares the two as text.
func FuzzInstanceName(f *testing.F) {
	for _, s := range []string{"Garden", "Jardín de Ana", `a.b\c"d;e(f)@g'h$`, "...", "\x00\xff", strings.Repeat("x", 100)} {
		f.Add(s, 1)
	}
	f.Fuzz(func(t *testing.T, name string, n int) {
		o := &own{host: "cloudrest-1a2b3c4d.local.", instance: instanceName(name, testID, n), port: 1}
		if len(o.instance) > maxLabel || !utf8.ValidString(o.instance) || o.instance != clean(o.instance) {
			t.Fatalf("instance %q", o.instance)
		}
		m := dns.Msg{Answer: []dns.RR{o.srv(Service)}}
		b, err := m.Pack()
		if err != nil {
			t.Fatalf("%q cannot be packed: %v", o.name(Service), err)
		}
		var back dns.Msg
		if err := back.Unpack(b); err != nil {
			t.Fatal(err)
		}
		if got := back.Answer[0].Header().Name; got != o.name(Service) {
			t.Fatalf("%q came back as %q", o.name(Service), got)
		}
		if got, ok := instanceOf(back.Answer[0].Header().Name, Service); !ok || got != o.instance {
			t.Fatalf("instanceOf = %q, %v, want %q", got, ok, o.instance)
		}
		if got := strings.Trim(escape(o.instance), "."); got != escape(o.instance) {
			t.Fatalf("zeroconf would cut %q to %q", escape(o.instance), got)
		}
	})
}

func TestText(t *testing.T) {
	in := testInfo()
	got := in.text("cloudrest-1a2b3c4d.local")
	want := []string{
		"id=" + string(testID), "name=Jardín de Ana", "api=2.1", "fp=" + strings.Repeat("ab", 32),
		"path=/api/", "url=https://cloudrest-1a2b3c4d.local:8443/api/", "v=1.4.0",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("text = %q, want %q", got, want)
	}
	in = Info{ID: testID, Port: 443, Name: strings.Repeat("é", 200) + "\x00", URL: "https://h/" + strings.Repeat("x", 300), Version: "\xff\n"}
	got = in.text("h.local")
	want = []string{"id=" + string(testID), "name=" + strings.Repeat("é", 125), "api=", "fp=", "path=/", "url=", "v=  "}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("text = %q, want %q", got, want)
	}
	in.URL = ""
	if got := in.text("h.local")[5]; got != "url=https://h.local/" {
		t.Errorf("url on port 443 = %q", got)
	}
	for _, s := range in.text(strings.Repeat("h", 300)) {
		if len(s) > maxText {
			t.Errorf("%d bytes: %q", len(s), s)
		}
	}
}

func TestInfoCheck(t *testing.T) {
	if err := testInfo().check(); err != nil {
		t.Error(err)
	}
	for _, change := range []func(*Info){func(in *Info) { in.ID = "x" }, func(in *Info) { in.Port = 0 }, func(in *Info) { in.Port = 65536 }} {
		in := testInfo()
		change(&in)
		if err := in.check(); !errors.Is(err, ErrInfo) {
			t.Errorf("check(%+v) = %v, want %v", in, err, ErrInfo)
		}
	}
}

// A TXT value with a backslash arrives as it was sent.
func TestTextOverTheWire(t *testing.T) {
	o := &own{host: "h.local.", instance: "x", text: []string{`name=a\b "c" ` + "\u00e9", `path=/\255`}}
	m := dns.Msg{Answer: []dns.RR{o.txt(Service)}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var back dns.Msg
	if err := back.Unpack(b); err != nil {
		t.Fatal(err)
	}
	got := parseText(back.Answer[0].(*dns.TXT).Txt)
	if got["name"] != `a\b "c" é` || got["path"] != `/\255` {
		t.Errorf("TXT = %q", got)
	}
}
