package beacon

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"
	"unicode/utf8"
)

var testMAC = net.HardwareAddr{0x18, 0xc8, 0xe7, 0x81, 0x9e, 0x7b}

func TestFormat(t *testing.T) {
	got, err := Format(testMAC, "Garden", "https://192.168.1.2/")
	if want := "CloudREST || 18:C8:E7:81:9E:7B || Garden || https://192.168.1.2/"; err != nil || string(got) != want {
		t.Errorf("Format = %q, %v, want %q", got, err, want)
	}
	got, err = Format(nil, "", "http://127.0.0.1:8080")
	if want := "CloudREST || 00:00:00:00:00:00 || CloudREST || http://127.0.0.1:8080"; err != nil || string(got) != want {
		t.Errorf("Format without MAC and name = %q, %v, want %q", got, err, want)
	}
	long := "https://h/" + strings.Repeat("x", MaxURL)
	for _, u := range []string{"", "garden", "ftp://h/", "https://", "https://h/a||b", "https://h/a b", "https://h/\n", "https://h/é", "https://u:p@h/", long} {
		if got, err := Format(testMAC, "Garden", u); !errors.Is(err, ErrURL) {
			t.Errorf("Format with URL %.40q = %q, %v, want %v", u, got, err, ErrURL)
		}
	}
	got, err = Format(testMAC, strings.Repeat("n", 3*MaxName), long[:MaxURL])
	if err != nil || len(got) != MaxAnswer {
		t.Errorf("longest answer: %d bytes, %v, want %d", len(got), err, MaxAnswer)
	}
}

// The oldest phone apps split on the separator and trim.
func TestOldestApps(t *testing.T) {
	for _, name := range []string{"Garden", "a || b", "||", "|", "x|", "|x", "a |||| https://evil/", "a\n|| b"} {
		b, err := Format(testMAC, name, "https://192.168.1.2/")
		if err != nil {
			t.Fatal(err)
		}
		f := strings.Split(string(b), "||")
		if len(f) != 4 || strings.TrimSpace(f[0]) != "CloudREST" || strings.TrimSpace(f[1]) != "18:C8:E7:81:9E:7B" ||
			strings.TrimSpace(f[2]) != CleanName(name) || strings.TrimSpace(f[3]) != "https://192.168.1.2/" {
			t.Errorf("name %q gives fields %q", name, f)
		}
	}
}

func TestCleanName(t *testing.T) {
	for name, want := range map[string]string{
		"Garden":                  "Garden",
		"  Jardín   de Ana ":      "Jardín de Ana",
		"a || b":                  "a | b",
		"a|||||b|c":               "a|b|c",
		"a\x00b\r\nc\x1b[31m":     "a b c [31m",
		"a\u202eb\u2028c\u200bd":  "a b c d",
		"\xff\xfe":                FallbackName,
		"":                        FallbackName,
		strings.Repeat("é", 40):   strings.Repeat("é", 32),
		strings.Repeat("ab ", 99): strings.TrimSpace(strings.Repeat("ab ", 99)[:MaxName]),
		"温室":                      "温室",
	} {
		if got := CleanName(name); got != want {
			t.Errorf("CleanName(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestParseAnswer(t *testing.T) {
	want := Answer{MAC: "18:C8:E7:81:9E:7B", Name: "Garden", URL: "https://192.168.1.2/"}
	for _, s := range []string{
		"CloudREST || 18:C8:E7:81:9E:7B || Garden || https://192.168.1.2/",
		"CloudREST||18:c8:e7:81:9e:7b||Garden||https://192.168.1.2/",
	} {
		if got, err := ParseAnswer([]byte(s)); err != nil || got != want {
			t.Errorf("ParseAnswer(%q) = %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "hello", "CloudREST", "cloudrest || 18:C8:E7:81:9E:7B || Garden || https://h/",
		"CloudREST || 18:C8:E7:81:9E:7B || Garden", "CloudREST || 18:C8:E7:81:9E:7B || Garden || https://h/ || x",
		"CloudREST || 18-C8-E7-81-9E-7B || Garden || https://h/", "CloudREST || 18C8.E781.9E7B || Garden || https://h/",
		"CloudREST || 02:00:5e:10:00:00:00:01 || Garden || https://h/",
		"CloudREST || 18:C8:E7:81:9E:7B || Gar\x1bden || https://h/", "CloudREST || 18:C8:E7:81:9E:7B ||  || https://h/",
		"CloudREST || 18:C8:E7:81:9E:7B || Garden || javascript:alert(1)", "CloudREST || 18:C8:E7:81:9E:7B || Garden || https://h/\n",
		"CloudREST || 18:C8:E7:81:9E:7B || " + strings.Repeat("n", MaxName+1) + " || https://h/",
		"CloudREST || 18:C8:E7:81:9E:7B || Garden || https://h/" + strings.Repeat(" ", MaxAnswer),
	} {
		if got, err := ParseAnswer([]byte(s)); !errors.Is(err, ErrAnswer) {
			t.Errorf("ParseAnswer(%.80q) = %+v, %v, want %v", s, got, err, ErrAnswer)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte("CloudREST || 18:C8:E7:81:9E:7B || Garden || https://192.168.1.2/"))
	f.Add([]byte("CloudREST||00:00:00:00:00:00||a|b||http://[fd00::1]:8080/x?y"))
	f.Add([]byte("CloudREST || 18:C8:E7:81:9E:7B || \xff || https://h/"))
	f.Add([]byte("hello"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAnswer(b)
		if err != nil {
			return
		}
		mac, err := net.ParseMAC(a.MAC)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Format(mac, a.Name, a.URL)
		if err != nil {
			t.Fatalf("%q was read from %q and cannot be written: %v", a, b, err)
		}
		if back, err := ParseAnswer(again); err != nil || back != a {
			t.Fatalf("%q was read back as %+v, %v, want %+v", again, back, err, a)
		}
	})
}

func FuzzFormat(f *testing.F) {
	f.Add([]byte{0x18, 0xc8, 0xe7, 0x81, 0x9e, 0x7b}, "Garden", "https://192.168.1.2/")
	f.Add([]byte{}, "a || 00:00:00:00:00:00 || b", "http://h:1/")
	f.Add([]byte{1}, "|\x00|\n||\xff", "https://[fe80::1]/")
	f.Fuzz(func(t *testing.T, mac []byte, name, u string) {
		b, err := Format(mac, name, u)
		if err != nil {
			return
		}
		if len(b) > MaxAnswer || bytes.Count(b, []byte(separator)) != 3 || !utf8.Valid(b) || bytes.ContainsAny(b, "\x00\r\n\x1b") {
			t.Fatalf("Format(%q, %q) = %q", name, u, b)
		}
		a, err := ParseAnswer(b)
		if err != nil || a.Name != CleanName(name) || a.URL != u {
			t.Fatalf("%q was read back as %+v, %v", b, a, err)
		}
		if CleanName(a.Name) != a.Name {
			t.Fatalf("CleanName(%q) = %q", a.Name, CleanName(a.Name))
		}
	})
}
