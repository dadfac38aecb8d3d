package trust

import (
	"errors"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tether"
)

var invited = Invitation{
	URL: "https://cloudrest-96091f9b.local:8443", ID: tether.NewDeviceID([]byte("example unique id")),
	Pin: strings.Repeat("0123456789abcdef", 4), Secret: "Zm9vYmFyLWJhel8xMjM0NQ",
}

func TestInvitation(t *testing.T) {
	const want = "https://cloudrest-96091f9b.local:8443/.cloudrest/#c=syer7g772aiwkngaa47jps2qyeaje5xz2jdm72tu5gxotbniynkq.ASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNFZ4mrze8.Zm9vYmFyLWJhel8xMjM0NQ"
	if got := invited.String(); got != want {
		t.Errorf("String = %s, want %s", got, want)
	}
	for _, url := range []string{invited.URL, "https://192.0.2.7", "https://[fd00::7]:8443", "https://garden", "https://a:1"} {
		i := invited
		i.URL = url
		if got, err := ParseInvitation(i.String()); err != nil || got != i {
			t.Errorf("ParseInvitation(%s) = %+v, %v", i, got, err)
		}
	}
}

func TestParseInvitationRefuses(t *testing.T) {
	good := invited.String()
	swap := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	for name, s := range map[string]string{
		"nothing":             "",
		"a web page":          "https://example.org/",
		"no TLS":              swap("https:", "http:"),
		"upper case":          strings.ToUpper(good),
		"another path":        swap("/.cloudrest/", "/x/.cloudrest/"),
		"a query":             swap("/#", "/?a=b#"),
		"a user":              swap("https://", "https://user@"),
		"no host":             swap("cloudrest-96091f9b.local:8443", ""),
		"no host but a port":  swap("cloudrest-96091f9b.local", ""),
		"an empty port":       swap(":8443", ":"),
		"port 0":              swap(":8443", ":0"),
		"port 65536":          swap(":8443", ":65536"),
		"port 08443":          swap(":8443", ":08443"),
		"a zone":              swap("cloudrest-96091f9b.local", "[fe80::1%25eth0]"),
		"a long IPv6 address": swap("cloudrest-96091f9b.local", "[fd00:0::7]"),
		"IPv4 in brackets":    swap("cloudrest-96091f9b.local", "[192.0.2.7]"),
		"a name in brackets":  swap("cloudrest-96091f9b.local", "[garden]"),
		"a name with _":       swap("cloudrest-", "cloudrest_"),
		"an escaped host":     swap("cloudrest-", "%63loudrest-"),
		"a line feed":         swap("cloudrest-", "cloud\nrest-"),
		"a damaged ID":        swap("syer", "sye1"),
		"an ID in hex":        swap(invited.ID.Label(), string(invited.ID)),
		"a short pin":         swap("ASNF", ""),
		"spare bits in a pin": swap("Jq83vASNFZ4mrze8.", "Jq83vASNFZ4mrze9."),
		"a pin with padding":  swap("mrze8.", "mrze8=."),
		"a broken pin":        swap("ASNF", "AS\nNF"),
		"no secret":           swap(invited.Secret, ""),
		"an odd secret":       swap(invited.Secret, "a%20b"),
		"four parts":          good + ".x",
		"two parts":           good[:strings.LastIndexByte(good, '.')],
		"a long secret":       good + strings.Repeat("x", MaxSecret),
		"too long":            swap(invited.Secret, strings.Repeat("x", MaxInvitation)),
		"a second fragment":   good + "/.cloudrest/#c=",
	} {
		got, err := ParseInvitation(s)
		if !errors.Is(err, ErrInvitation) || got != (Invitation{}) {
			t.Errorf("%s: ParseInvitation = %+v, %v, want ErrInvitation", name, got, err)
		}
		if err != nil && strings.Contains(err.Error(), invited.Secret) {
			t.Errorf("%s: the error quotes the secret: %v", name, err)
		}
	}
}

func FuzzParseInvitation(f *testing.F) {
	f.Add(invited.String())
	f.Add("https://[fd00::7]/.cloudrest/#c=a.b.c")
	f.Add("https://a/.cloudrest/#c=..")
	f.Fuzz(func(t *testing.T, s string) {
		i, err := ParseInvitation(s)
		if err != nil {
			if !errors.Is(err, ErrInvitation) || i != (Invitation{}) {
				t.Fatalf("ParseInvitation = %+v, %v", i, err)
			}
			return
		}
		if got := i.String(); got != s {
			t.Errorf("read %q, written %q", s, got)
		}
	})
}
