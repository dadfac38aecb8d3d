// Package beacon is discovery by UDP (paper, "Local Discovery Service"): a datagram of any
// content to port 15800 is answered on port 15900 of the sender, and on the port it was
// sent from, with the text
//
//	CloudREST || 18:C8:E7:81:9E:7B || Garden || https://192.168.1.2/
//
// Server answers, Ask asks. Broadcast reaches what multicast DNS does not (and the other
// way round: phones of one maker may not broadcast); discovery by mDNS is package dnssd.
//
// The answer is longer than the shortest question, because the paper asks for an answer to
// "any content". What keeps it from serving an attacker is the rest: only peers of local
// networks are answered, each a few times a second, all together a bounded number of times,
// nothing that is itself an answer, and no port that could answer back (see Server).
package beacon

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The text of an answer.
const (
	magic     = "CloudREST"
	separator = "||"

	MaxName   = 64  // bytes of the device name in an answer
	MaxURL    = 256 // bytes of the URL
	MaxAnswer = len(magic) + macLength + MaxName + MaxURL + 3*len(" "+separator+" ")

	macLength = len("00:00:00:00:00:00")
	// FallbackName stands for a device whose name has no printable character.
	FallbackName = magic
)

// Answer is one answer as an asker gets it.
type Answer struct {
	MAC  string         // of the interface that the question came in on: "18:C8:E7:81:9E:7B"; zeros on loopback
	Name string         // as CleanName leaves it
	URL  string         // of the REST API, http or https
	From netip.AddrPort // who sent it; not part of the text
}

var (
	// ErrAnswer means that a datagram is not an answer as Format writes it.
	ErrAnswer = errors.New("not a CloudREST discovery answer")
	// ErrURL means that a URL cannot stand in an answer.
	ErrURL = errors.New("not a URL for a discovery answer")
)

// Format returns the answer of a device: the MAC address in upper-case hex with colons
// (zeros when it is not 48 bits long), the name as CleanName leaves it, and the URL, which must be
// absolute, http or https, printable ASCII and at most MaxURL bytes long (ErrURL).
// The result is at most MaxAnswer bytes long.
func Format(mac net.HardwareAddr, name, rawURL string) ([]byte, error) {
	if err := checkURL(rawURL); err != nil {
		return nil, err
	}
	if len(mac) != 6 {
		mac = make(net.HardwareAddr, 6)
	}
	return fmt.Appendf(nil, "%s || %s || %s || %s", magic, strings.ToUpper(mac.String()), CleanName(name), rawURL), nil
}

// ParseAnswer reads what Format wrote; spaces around the separators do not matter, nor
// does the case of the MAC address. Everything else is ErrAnswer: an answer comes from a
// stranger and ends on a person's screen.
func ParseAnswer(b []byte) (Answer, error) {
	if len(b) > MaxAnswer {
		return Answer{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrAnswer, len(b), MaxAnswer)
	}
	f := strings.Split(string(b), separator)
	for i := range f {
		f[i] = strings.Trim(f[i], " ")
	}
	if len(f) != 4 || f[0] != magic {
		return Answer{}, ErrAnswer
	}
	mac, err := net.ParseMAC(f[1])
	if err != nil || len(f[1]) != macLength || f[1][2] != ':' {
		return Answer{}, fmt.Errorf("%w: MAC address %.40q", ErrAnswer, f[1])
	}
	if f[2] != CleanName(f[2]) {
		return Answer{}, fmt.Errorf("%w: name %.80q", ErrAnswer, f[2])
	}
	if err := checkURL(f[3]); err != nil {
		return Answer{}, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	return Answer{MAC: strings.ToUpper(mac.String()), Name: f[2], URL: f[3]}, nil
}

// CleanName makes a name safe to stand between the separators and on a screen: no
// control, format or other unprintable character, no separator, single spaces, at most
// MaxName bytes cut between characters. What is left empty becomes FallbackName.
// A clean name stays as it is.
func CleanName(name string) string {
	var b strings.Builder
	last := ' ' // leading spaces fall away
	for _, r := range name {
		switch {
		case r == utf8.RuneError || unicode.IsSpace(r) || !unicode.IsPrint(r):
			r = ' '
		case r == '|' && last == '|':
			continue // a run of bars becomes one: two would be a separator
		}
		if r == ' ' && last == ' ' {
			continue
		}
		if b.Len()+utf8.RuneLen(r) > MaxName {
			break
		}
		b.WriteRune(r)
		last = r
	}
	if s := strings.TrimRight(b.String(), " "); s != "" {
		return s
	}
	return FallbackName
}

func checkURL(s string) error {
	if len(s) > MaxURL {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrURL, len(s), MaxURL)
	}
	if strings.Contains(s, separator) || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%w: %q holds a separator, a space or a character that is not printable ASCII", ErrURL, s)
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return fmt.Errorf("%w: %q, want http or https with a host", ErrURL, s)
	}
	return nil
}
