package settings

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxFile is the size of the largest configuration file, in bytes.
const MaxFile = 1 << 20

// Entry is one "key = value" line of a configuration file.
type Entry struct {
	Key, Value string
	Line       int // from 1; Print ignores it
}

// FileError is a line that is not in the format of the package documentation.
type FileError struct {
	File string
	Line int // from 1; 0: the file as a whole
	Err  error
}

func (e *FileError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
}

func (e *FileError) Unwrap() error { return e.Err }

// ParseFile reads the text of a configuration file; name is for the errors. It goes on
// after a bad line: err joins one *FileError for each, and the entries are those of the
// good lines.
func ParseFile(name string, text []byte) (entries []Entry, err error) {
	if len(text) > MaxFile {
		return nil, &FileError{name, 0, fmt.Errorf("%d bytes, at most %d are read", len(text), MaxFile)}
	}
	var errs []error
	text = bytes.TrimPrefix(text, []byte("\ufeff")) // editors on Windows put a byte order mark
	number := 0
	for raw := range bytes.Lines(text) {
		number++
		line := strings.TrimRight(string(raw), "\r\n")
		e, ok, err := parseLine(line)
		if err != nil {
			errs = append(errs, &FileError{name, number, err})
		} else if ok {
			e.Line = number
			entries = append(entries, e)
		}
	}
	return entries, errors.Join(errs...)
}

// parseLine reads one line without its end; ok is false for an empty one or a comment.
func parseLine(line string) (e Entry, ok bool, err error) {
	if !utf8.ValidString(line) {
		return e, false, errors.New("not UTF-8")
	}
	if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return e, false, errors.New("holds a control character")
	}
	line = trim(line)
	if line == "" || line[0] == '#' {
		return e, false, nil
	}
	key, value, found := strings.Cut(line, "=")
	key, value = trim(key), trim(value)
	if !found {
		return e, false, errors.New("is not \"key = value\"") // its text may be a secret
	}
	if !validName(key) {
		return e, false, fmt.Errorf("%q is not a key: lower-case letters, digits and - only", short(key))
	}
	if strings.HasPrefix(value, `"`) {
		value, err = unquote(value)
	} else {
		value, err = bare(value)
	}
	return Entry{Key: key, Value: value}, err == nil, err
}

// bare reads a value without quotes, up to a comment.
func bare(s string) (string, error) {
	for i := range len(s) {
		switch {
		case s[i] == '"':
			return "", errors.New(`a quote inside the value: put the whole value in quotes and write \"`)
		case s[i] == '#' && (i == 0 || isSpace(s[i-1])):
			s = trim(s[:i])
			if s == "" {
				return "", errEmpty
			}
			return s, nil
		}
	}
	if s == "" {
		return "", errEmpty
	}
	return s, nil
}

var errEmpty = errors.New(`no value after =: remove the line for the default, or write "" for an empty value`)

// unquote reads a value in quotes and checks that only a comment follows.
func unquote(s string) (string, error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; c {
		case '"':
			if rest := trim(s[i+1:]); rest != "" && rest[0] != '#' {
				return "", fmt.Errorf("%q after the closing quote", short(rest))
			}
			return b.String(), nil
		case '\\':
			i++
			if i == len(s) {
				return "", errors.New("no closing quote")
			}
			at := strings.IndexByte(escapes, s[i])
			if at < 0 {
				return "", fmt.Errorf(`\%c is not known: only \" \\ \n \r \t are`, s[i])
			}
			b.WriteByte(escaped[at])
		default:
			b.WriteByte(c)
		}
	}
	return "", errors.New("no closing quote")
}

const (
	escapes = "\"\\nrt"
	escaped = "\"\\\n\r\t"
)

// Print writes entries so that ParseFile gives them back. A value that the format cannot
// hold (a control character other than newline, return and tab, or not UTF-8) is an error.
func Print(entries []Entry) ([]byte, error) {
	var b []byte
	for _, e := range entries {
		line, err := printLine(e)
		if err != nil {
			return nil, err
		}
		b = append(append(b, line...), '\n')
	}
	return b, nil
}

func printLine(e Entry) (string, error) {
	if !validName(e.Key) {
		return "", fmt.Errorf("%q is not a key", e.Key)
	}
	line := e.Key + " = " + e.Value
	if got, ok, err := parseLine(line); err != nil || !ok || got != (Entry{Key: e.Key, Value: e.Value}) {
		line = e.Key + ` = "` + quoter.Replace(e.Value) + `"`
		if _, ok, err := parseLine(line); err != nil || !ok {
			return "", fmt.Errorf("value of %q: %w", e.Key, err)
		}
	}
	return line, nil
}

var quoter = strings.NewReplacer(`"`, `\"`, `\`, `\\`, "\n", `\n`, "\r", `\r`, "\t", `\t`)

func isSpace(c byte) bool   { return c == ' ' || c == '\t' }
func trim(s string) string  { return strings.Trim(s, " \t") }
func short(s string) string { return clip(s, 60) }

// clip shortens s to about n bytes for a message.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

// validName reports whether s can be a setting: letters, digits and single hyphens inside.
func validName(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
