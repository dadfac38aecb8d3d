package dnssd

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cloudrest/cloudrest/firmware/discovery/dns"
	"github.com/cloudrest/cloudrest/tether"
)

// Service types that a device announces (RFC 6763 §7).
const (
	Service      = "_cloudrest._tcp"
	ServiceHTTPS = "_https._tcp"
)

const (
	domain   = "local"
	maxLabel = 63 // bytes of one label (RFC 1035 §2.3.4), so of an instance name
)

// HostName is the host name of a device, without the last dot: "cloudrest-1a2b3c4d.local".
// Should another host have it, the device takes "cloudrest-1a2b3c4d-2.local" and so on; State tells.
func HostName(id tether.DeviceID) string { return hostName(id, 1) }

func hostName(id tether.DeviceID, n int) string {
	if n > 1 {
		return fmt.Sprintf("cloudrest-%s-%d.%s", id.Short(), n, domain)
	}
	return fmt.Sprintf("cloudrest-%s.%s", id.Short(), domain)
}

// instanceName is what people see in a list of services: the friendly name and the short
// ID, "Garden 1a2b3c4d", and for n > 1 a number in the customary form, "Garden 1a2b3c4d (2)"
// (RFC 6762 §9). The friendly name is cut where the label would be too long.
func instanceName(name string, id tether.DeviceID, n int) string {
	tail := id.Short()
	if n > 1 {
		tail += fmt.Sprintf(" (%d)", n)
	}
	// zeroconf cuts dots off both ends of a name, also the escaped ones.
	name = strings.Trim(clean(name), ". ")
	if name == "" {
		name = "CloudREST"
	}
	return strings.TrimRight(cut(name, maxLabel-len(tail)-1), ". ") + " " + tail
}

// cut is the longest start of s of at most max bytes that ends with a whole character.
func cut(s string, max int) string {
	if len(s) <= max {
		return s
	}
	for max > 0 && !utf8.RuneStart(s[max]) {
		max--
	}
	return s[:max]
}

// clean replaces what cannot be shown: control and format characters and broken UTF-8.
// Names come from strangers, and end on a terminal or a page.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// escape writes a label the way package dns reads and shows it. zeroconf compares names
// in that form: an instance whose name holds a space was never found otherwise.
func escape(label string) string {
	wire := append(append([]byte{byte(len(label))}, label...), 0)
	name, _, err := dns.UnpackDomainName(wire, 0)
	if err != nil || len(label) > maxLabel {
		panic(fmt.Sprintf("dnssd: label %q is %d bytes long", label, len(label))) // instanceName has cut it
	}
	return strings.TrimSuffix(name, ".")
}

// unescape gives the bytes of a label, or of a character string of a TXT record, that
// package dns has escaped (RFC 1035 §5.1).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '\\' && i+1 < len(s) {
			i++
			c = s[i]
			if i+2 < len(s) && digit(c) && digit(s[i+1]) && digit(s[i+2]) {
				c = (c-'0')*100 + (s[i+1]-'0')*10 + s[i+2] - '0'
				i += 2
			}
		}
		b = append(b, c)
	}
	return string(b)
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// instanceOf splits the full name of a service instance: the unescaped instance, if name
// is one of the service type ("_cloudrest._tcp").
func instanceOf(name, service string) (string, bool) {
	suffix := "." + service + "." + domain + "."
	at := len(name) - len(suffix)
	if at <= 0 || !strings.EqualFold(name[at:], suffix) || name[at-1] == '\\' {
		return "", false
	}
	return unescape(name[:at]), true
}
