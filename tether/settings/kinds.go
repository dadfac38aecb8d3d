package settings

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// errPlain says no more than the Want of the error around it.
var errPlain = errors.New("not such a value")

// Each method declares one setting: p points to where the value goes, and what it holds
// now is the default. usage is one sentence without a full stop.

// Value declares a setting of any type. parse turns text into a value; an error of it is
// shown after want. show turns a value back into text that parse takes.
func Value[T any](s *Set, p *T, name, what, want, usage string, parse func(string) (T, error), show func(T) string, opts ...Option) {
	s.add(&setting{
		name: name, what: what, want: want, usage: usage,
		set: func(text string) error {
			v, err := parse(text)
			if err == nil {
				*p = v
			}
			return err
		},
		show:  func() string { return show(*p) },
		clear: func() { *p = *new(T) },
	}, opts)
}

// List declares a setting that takes several values, repeated or separated by commas;
// parse reads one of them. An empty text is an empty list.
func List[T any](s *Set, p *[]T, name, what, want, usage string, parse func(string) (T, error), show func(T) string, opts ...Option) {
	s.add(&setting{
		name: name, what: what + ",...", want: want, usage: usage, list: true,
		set: func(text string) error {
			if trim(text) == "" {
				return nil
			}
			for part := range strings.SplitSeq(text, ",") {
				v, err := parse(trim(part))
				if err != nil {
					return err
				}
				*p = append(*p, v)
			}
			return nil
		},
		show: func() string {
			var parts []string
			for _, v := range *p {
				parts = append(parts, show(v))
			}
			return strings.Join(parts, ",")
		},
		clear: func() { *p = nil },
	}, opts)
}

// String declares any text on one line.
func (s *Set) String(p *string, name, usage string, opts ...Option) {
	Value(s, p, name, "TEXT", "a text without line ends", usage, func(t string) (string, error) {
		if strings.ContainsAny(t, "\r\n\x00") {
			return "", errPlain
		}
		return t, nil
	}, same, opts...)
}

// Strings declares a list of texts.
func (s *Set) Strings(p *[]string, name, usage string, opts ...Option) {
	List(s, p, name, "TEXT", "texts separated by commas", usage, func(t string) (string, error) {
		if t == "" || strings.ContainsAny(t, "\r\n\x00") {
			return "", errPlain
		}
		return t, nil
	}, same, opts...)
}

// Int declares a whole number from lo to hi.
func (s *Set) Int(p *int, name string, lo, hi int, usage string, opts ...Option) {
	want := fmt.Sprintf("a whole number from %d to %d", lo, hi)
	if hi == math.MaxInt {
		want = fmt.Sprintf("a whole number from %d up", lo)
	}
	Value(s, p, name, "N", want, usage, func(t string) (int, error) {
		n, err := strconv.Atoi(t)
		if err != nil || n < lo || n > hi {
			return 0, errPlain
		}
		return n, nil
	}, strconv.Itoa, opts...)
}

// Duration declares a length of time from lo to hi, written as in Go: 1m30s, 500ms.
func (s *Set) Duration(p *time.Duration, name string, lo, hi time.Duration, usage string, opts ...Option) {
	Value(s, p, name, "TIME", fmt.Sprintf("a time from %s to %s with its unit (ms, s, m, h)", showDuration(lo), showDuration(hi)), usage,
		func(t string) (time.Duration, error) {
			d, err := time.ParseDuration(t)
			if err != nil || d < lo || d > hi {
				return 0, errPlain
			}
			return d, nil
		}, showDuration, opts...)
}

// showDuration is Duration.String without zero units at the end: 1m, not 1m0s.
func showDuration(d time.Duration) string {
	t := d.String()
	if strings.HasSuffix(t, "m0s") {
		t = strings.TrimSuffix(t, "0s")
	}
	if strings.HasSuffix(t, "h0m") {
		t = strings.TrimSuffix(t, "0m")
	}
	return t
}

// units of Size, the largest first.
var units = []struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}, {"", 1}}

// Size declares a number of bytes from lo to hi, written with its unit: 16MiB, 64KiB, 500kB.
func (s *Set) Size(p *int64, name string, lo, hi int64, usage string, opts ...Option) {
	Value(s, p, name, "SIZE", fmt.Sprintf("a size from %s to %s (B, KiB, MiB, GiB, kB, MB, GB)", FormatSize(lo), FormatSize(hi)), usage,
		func(t string) (int64, error) {
			n, err := ParseSize(t)
			if err != nil || n < lo || n > hi {
				return 0, errPlain
			}
			return n, nil
		}, FormatSize, opts...)
}

// ParseSize reads a number of bytes with its unit, as Size takes it.
func ParseSize(t string) (int64, error) {
	digits := t
	for i := range len(t) {
		if t[i] < '0' || t[i] > '9' {
			digits = t[:i]
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, errPlain
	}
	for _, u := range units {
		if strings.EqualFold(trim(t[len(digits):]), u.name) {
			if n > math.MaxInt64/u.bytes {
				return 0, errPlain
			}
			return n * u.bytes, nil
		}
	}
	return 0, errPlain
}

// FormatSize writes a number of bytes so that ParseSize takes it.
func FormatSize(n int64) string {
	for _, u := range units {
		if n != 0 && n%u.bytes == 0 && u.bytes%1024 == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// words of a setting that is on or off.
var words = map[string]bool{"on": true, "true": true, "yes": true, "1": true, "off": false, "false": false, "no": false, "0": false}

// OnOff declares a setting that is on or off; --name alone means on, and an argument that
// follows is its value.
func (s *Set) OnOff(p *bool, name, usage string, opts ...Option) {
	s.toggle(p, name, usage, true, opts)
}

// Switch is OnOff for commands with arguments: the flag never takes the next argument,
// only --name=off is the other form.
func (s *Set) Switch(p *bool, name, usage string, opts ...Option) {
	s.toggle(p, name, usage, false, opts)
}

func (s *Set) toggle(p *bool, name, usage string, greedy bool, opts []Option) {
	Value(s, p, name, "on|off", "on or off", usage, func(t string) (bool, error) {
		v, ok := words[strings.ToLower(t)]
		if !ok {
			return false, errPlain
		}
		return v, nil
	}, func(v bool) string {
		if v {
			return "on"
		}
		return off
	}, append([]Option{func(st *setting) { st.bare, st.greedy = true, greedy }}, opts...)...)
}

// Enum declares one word out of choices.
func (s *Set) Enum(p *string, name string, choices []string, usage string, opts ...Option) {
	Value(s, p, name, strings.Join(choices, "|"), "one of "+strings.Join(choices, ", "), usage, func(t string) (string, error) {
		if !slices.Contains(choices, t) {
			if near := nearest(t, choices); near != "" {
				return "", fmt.Errorf("did you mean %s?", near)
			}
			return "", errPlain
		}
		return t, nil
	}, same, opts...)
}

// ParseURL reads an absolute URL whose scheme is one of those listed, separated by
// commas. A unix URL has a path and no host, every other one a host; user information
// and fragments are refused, since nothing here uses them.
func ParseURL(text, schemes string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		if ue := new(url.Error); errors.As(err, &ue) {
			err = ue.Err // its text would repeat the value
		}
		return nil, err
	}
	if !slices.Contains(strings.Split(schemes, ","), u.Scheme) {
		return nil, fmt.Errorf("the scheme is %q", u.Scheme)
	}
	switch {
	case u.User != nil:
		return nil, errors.New("a user name or password does not belong here")
	case u.Fragment != "" || u.Opaque != "":
		return nil, errPlain
	case u.Scheme == "unix" && (u.Host != "" || u.Path == ""):
		return nil, errors.New("a unix URL needs three slashes and a path: unix:///run/service.sock")
	case u.Scheme != "unix" && u.Hostname() == "":
		return nil, errors.New("the host is missing")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return nil, errors.New("the port is not from 1 to 65535")
		}
	}
	return u, nil
}

func wantURL(schemes string) string {
	return "a URL that begins with " + strings.ReplaceAll(schemes, ",", ":// or ") + "://"
}

// URL declares an absolute URL; schemes are separated by commas (see ParseURL).
func (s *Set) URL(p **url.URL, name, schemes, usage string, opts ...Option) {
	Value(s, p, name, "URL", wantURL(schemes), usage,
		func(t string) (*url.URL, error) { return ParseURL(t, schemes) }, showURL, opts...)
}

// URLs declares a list of absolute URLs.
func (s *Set) URLs(p *[]*url.URL, name, schemes, usage string, opts ...Option) {
	List(s, p, name, "URL", wantURL(schemes)+"; several are separated by commas", usage,
		func(t string) (*url.URL, error) { return ParseURL(t, schemes) }, showURL, opts...)
}

func showURL(u *url.URL) string {
	if u == nil {
		return ""
	}
	return u.String()
}

// ParseAddress checks a host:port to listen on or to dial: the host may be empty, a name or
// an IP address (v6 in brackets), the port is a number from 0 to 65535.
func ParseAddress(t string) (string, error) {
	host, port, err := net.SplitHostPort(t)
	if err != nil {
		if ae := new(net.AddrError); errors.As(err, &ae) {
			err = errors.New(ae.Err)
		}
		return "", err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return "", errors.New("the port is not from 0 to 65535")
	}
	if strings.ContainsAny(host, " /?#@\"\\") {
		return "", errors.New("the host holds a character that no host has")
	}
	return t, nil
}

// Address declares a host:port (see ParseAddress).
func (s *Set) Address(p *string, name, usage string, opts ...Option) {
	Value(s, p, name, "HOST:PORT", "host:port, or :port for every address of the machine", usage, ParseAddress, same, opts...)
}

// Path declares the path of a file or directory that may not exist yet.
func (s *Set) Path(p *string, name, usage string, opts ...Option) {
	Value(s, p, name, "PATH", "a path", usage, func(t string) (string, error) {
		if t == "" || strings.ContainsAny(t, "\r\n\x00") {
			return "", errPlain
		}
		return t, nil
	}, same, opts...)
}

// File declares the path of a file that must exist and be readable; an empty text means none.
func (s *Set) File(p *string, name, usage string, opts ...Option) {
	Value(s, p, name, "FILE", "the path of a readable file", usage, func(t string) (string, error) {
		if t == "" {
			return "", nil
		}
		f, err := os.Open(t)
		if err != nil {
			if pe := new(os.PathError); errors.As(err, &pe) {
				err = pe.Err
			}
			return "", err
		}
		defer f.Close()
		if st, err := f.Stat(); err == nil && st.IsDir() {
			return "", errors.New("is a directory")
		}
		return t, nil
	}, same, opts...)
}

func same(t string) string { return t }
