package httpcache

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// varyAny reports whether Vary has a "*": no other request fits (RFC 9111 §4.1).
func varyAny(lines []string) bool {
	for _, line := range lines {
		for name := range strings.SplitSeq(line, ",") {
			if strings.Trim(name, " \t") == "*" {
				return true
			}
		}
	}
	return false
}

// maxVary bounds the fields that an answer may vary by: more is no cacheable answer.
const maxVary = 16

// VaryNames returns the canonical names of the request's fields that selected the answer,
// in a fixed order, each once. ok is false when the answer fits no other request.
func VaryNames(h http.Header) (names []string, ok bool) {
	lines := h["Vary"]
	if len(lines) == 0 {
		return nil, true
	}
	for _, line := range lines {
		for name := range strings.SplitSeq(line, ",") {
			name = strings.Trim(name, " \t")
			switch {
			case name == "":
			case name == "*" || !isToken(name) || len(names) == maxVary:
				return nil, false
			default:
				names = append(names, textproto.CanonicalMIMEHeaderKey(name))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), true
}

// AppendVaryKey appends what a request says in the fields of these names, so that two
// requests fit the same answer exactly if the keys are equal (§4.1). Lists are combined
// and their white space is taken out; languages and codings lose order and case, which
// mean nothing (RFC 9110 §12.5.4). Credentials are compared byte by byte.
func AppendVaryKey(dst []byte, names []string, h http.Header) []byte {
	for _, name := range names {
		lines, ok := h[name]
		if !ok || len(lines) == 0 {
			dst = append(dst, '-')
			continue
		}
		dst = append(dst, '+', 0, 0, 0, 0) // the length, so that no value can look like the next field
		at := len(dst)
		switch name {
		case "Accept-Language", "Accept-Encoding":
			dst = appendWeighted(dst, lines)
		case "Authorization", "Cookie", "Proxy-Authorization":
			for _, l := range lines {
				dst = append(append(dst, l...), '\n')
			}
		default:
			dst = appendList(dst, lines)
		}
		n := uint32(len(dst) - at)
		dst[at-4], dst[at-3], dst[at-2], dst[at-1] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	}
	return dst
}

// appendList joins lines with commas and takes the white space around commas out, except
// in quoted strings.
func appendList(dst []byte, lines []string) []byte {
	for i, s := range lines {
		if i > 0 {
			dst = append(dst, ',')
		}
		for {
			item, rest, _ := cutList(s)
			dst = append(dst, item...)
			if len(rest) == 0 {
				if strings.HasSuffix(s, ",") && item != s {
					dst = append(dst, ',')
				}
				break
			}
			dst = append(dst, ',')
			s = rest
		}
	}
	return dst
}

type weighted struct {
	name string
	q    int // thousandths
}

// maxWeighted bounds a list that is sorted; longer ones are compared as they are.
const maxWeighted = 32

// parseWeighted reads a list of names with weights (RFC 9110 §12.4.2) in lower case,
// heaviest first. ok is false when it is not such a list.
func parseWeighted(buf []weighted, lines []string) (list []weighted, ok bool) {
	list = buf[:0]
	for _, line := range lines {
		for item := range strings.SplitSeq(line, ",") {
			if item = strings.Trim(item, " \t"); item == "" {
				continue
			}
			name, param, has := strings.Cut(item, ";")
			w := weighted{strings.ToLower(strings.Trim(name, " \t")), 1000}
			if has {
				q, ok := parseQ(strings.Trim(param, " \t"))
				if !ok {
					return nil, false
				}
				w.q = q
			}
			if !isToken(w.name) || len(list) == maxWeighted {
				return nil, false
			}
			// Few enough to insert each where it belongs; slices.SortFunc would be 10 KB
			// on MIPS for this type alone.
			i := len(list)
			list = append(list, w)
			for ; i > 0 && w.before(list[i-1]); i-- {
				list[i] = list[i-1]
			}
			list[i] = w
		}
	}
	return list, true
}

func (w weighted) before(o weighted) bool {
	return w.q > o.q || w.q == o.q && w.name < o.name
}

func parseQ(s string) (thousandths int, ok bool) {
	if len(s) < 3 || s[0]|0x20 != 'q' || s[1] != '=' || len(s) > 7 {
		return 0, false
	}
	whole, part, _ := strings.Cut(s[2:], ".")
	if whole != "0" && whole != "1" {
		return 0, false
	}
	n, scale := 0, 100
	for i := range len(part) {
		if part[i] < '0' || part[i] > '9' {
			return 0, false
		}
		n += int(part[i]-'0') * scale
		scale /= 10
	}
	if whole == "1" {
		return 1000, n == 0
	}
	return n, true
}

func appendWeighted(dst []byte, lines []string) []byte {
	var buf [8]weighted
	list, ok := parseWeighted(buf[:0], lines)
	if !ok {
		return append(appendList(dst, lines), '!') // no weighted list ends so
	}
	for _, w := range list {
		dst = append(append(dst, w.name...), ';')
		dst = append(dst, byte('0'+w.q/1000), byte('0'+w.q/100%10), byte('0'+w.q/10%10), byte('0'+w.q%10), ',')
	}
	return dst
}

// BestLanguage returns the one language that a request wants most, in lower case; empty
// when it names none or several. An answer in that language is the one to select, however
// the request lists the others (RFC 9111 §4.1).
func BestLanguage(h http.Header) string {
	var buf [8]weighted
	list, ok := parseWeighted(buf[:0], h["Accept-Language"])
	if !ok || len(list) == 0 || len(list) > 1 && list[1].q == list[0].q || list[0].q == 0 || list[0].name == "*" {
		return ""
	}
	return list[0].name
}
