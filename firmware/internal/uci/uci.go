// Package uci reads the configuration files of OpenWrt, /etc/config/*, as libuci does, so
// that the daemon needs no shell script that writes another file for it. Writing them is
// for the uci command and LuCI.
//
// Source: OpenWrt's UCI documentation and libuci's file.c. A file is a list of statements,
// one per line or separated by semicolons:
//
//	config cloudrest 'main'
//		option origin 'http://127.0.0.1:8080'
//		list relay 'wss://a.example'
//		list relay 'wss://b.example'
//
// A word is made of bare, single-quoted and double-quoted pieces; a backslash takes the
// next byte as it is, except in single quotes; quotes may run over line ends; # outside
// quotes begins a comment.
package uci

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cloudrest/cloudrest/tether/settings"
)

// Section is one "config" statement with what follows it.
type Section struct {
	Type string
	Name string // empty: anonymous
	Line int    // from 1

	Options []Option // in the order of the file; a list is one Option per value
}

// Option is one "option" or "list" statement.
type Option struct {
	Name, Value string
	List        bool
	Line        int // from 1
}

// Parse reads the text of a file of at most settings.MaxFile bytes; name is for the
// errors. It goes on after a bad statement: err joins one *settings.FileError for each.
func Parse(name string, text []byte) (sections []Section, err error) {
	if len(text) > settings.MaxFile {
		return nil, &settings.FileError{File: name, Err: fmt.Errorf("%d bytes, at most %d are read", len(text), settings.MaxFile)}
	}
	var errs []error
	s := scanner{text: string(text), line: 1}
	for {
		line := s.line
		words, more, err := s.statement()
		if err == nil && len(words) > 0 {
			sections, err = add(sections, words, line)
		}
		if err != nil {
			errs = append(errs, &settings.FileError{File: name, Line: line, Err: err})
		}
		if !more {
			return sections, errors.Join(errs...)
		}
	}
}

// add puts what a statement says to what is there.
func add(sections []Section, words []string, line int) ([]Section, error) {
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	verb, n := words[0], len(words)-1
	switch {
	case verb == "package" && n == 1:
	case verb == "config" && (n == 1 || n == 2):
		if !validName(arg(1)) || n == 2 && !validName(arg(2)) {
			return sections, fmt.Errorf("%q is not a name: want letters, digits and _", strings.Join(words[1:], " "))
		}
		return append(sections, Section{Type: arg(1), Name: arg(2), Line: line}), nil
	case (verb == "option" || verb == "list") && n == 2:
		if !validName(arg(1)) {
			return sections, fmt.Errorf("%q is not a name: want letters, digits and _", arg(1))
		}
		if len(sections) == 0 {
			return nil, fmt.Errorf("%s %s stands before the first config line", verb, arg(1))
		}
		to := &sections[len(sections)-1]
		to.Options = append(to.Options, Option{Name: arg(1), Value: arg(2), List: verb == "list", Line: line})
	case verb == "option" || verb == "list":
		return sections, fmt.Errorf("%s takes a name and a value: there are %d words; text with spaces needs quotes", verb, n)
	default:
		return sections, fmt.Errorf("%q is no statement: want config, option or list", strings.Join(words, " "))
	}
	return sections, nil
}

// validName is what libuci takes for names; the hyphen in the names of our settings is
// not among it.
func validName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return s != ""
}

// scanner cuts a text into words.
type scanner struct {
	text string
	at   int
	line int
}

var errQuote = errors.New("a quote is not closed")

// statement reads the words up to the next line end or semicolon; more is false at the end.
func (s *scanner) statement() (words []string, more bool, err error) {
	var word []byte
	inWord := false
	end := func() {
		if inWord {
			words = append(words, string(word))
		}
		word, inWord = word[:0], false
	}
	for s.at < len(s.text) {
		c := s.next()
		switch c {
		case '\n', ';':
			end()
			return words, true, nil
		case ' ', '\t', '\r', '\v', '\f':
			end()
		case '#':
			end()
			for s.at < len(s.text) && s.text[s.at] != '\n' {
				s.at++
			}
		case '\\':
			if s.at == len(s.text) {
				break
			}
			if c = s.next(); c != '\n' { // a line that goes on
				word, inWord = append(word, c), true
			}
		case '\'', '"':
			inWord = true
			if word, err = s.quoted(word, c); err != nil {
				return nil, s.at < len(s.text), err
			}
		default:
			word, inWord = append(word, c), true
		}
	}
	end()
	return words, false, nil
}

// quoted reads up to the closing quote. Without one it steps back to the end of the first
// line, so that one lost quote is one mistake.
func (s *scanner) quoted(word []byte, quote byte) ([]byte, error) {
	start, line := s.at, s.line
	for s.at < len(s.text) {
		c := s.next()
		if c == quote {
			return word, nil
		}
		if c == '\\' && quote == '"' && s.at < len(s.text) {
			if c = s.next(); c == '\n' {
				continue
			}
		}
		word = append(word, c)
	}
	s.at, s.line = len(s.text), line
	if i := strings.IndexByte(s.text[start:], '\n'); i >= 0 {
		s.at, s.line = start+i+1, line+1
	}
	return nil, errQuote
}

func (s *scanner) next() byte {
	c := s.text[s.at]
	s.at++
	if c == '\n' {
		s.line++
	}
	return c
}
