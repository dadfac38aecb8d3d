package uci

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cloudrest/cloudrest/tether/settings"
)

// SectionType is the one type of section in /etc/config/cloudrest.
const SectionType = "cloudrest"

// initOptions are the options that the init script reads: whether the daemon is started at
// all, and its environment.
var initOptions = []string{"enabled", "gogc", "gomemlimit"}

// OptionName is how UCI writes the name of a setting: "state-dir" is state_dir.
func OptionName(setting string) string { return strings.ReplaceAll(setting, "-", "_") }

// Entries reads a configuration in either format: that of package settings, or UCI with
// one section "cloudrest". A UCI option with an empty value counts as not given, as for
// the uci command. It fits settings.App.ReadConfig; errors join *settings.FileError.
func Entries(name string, text []byte) (entries []settings.Entry, err error) {
	if !isUCI(text) {
		return settings.ParseFile(name, text)
	}
	sections, err := Parse(name, text)
	errs := []error{err}
	fail := func(line int, err error) {
		errs = append(errs, &settings.FileError{File: name, Line: line, Err: err})
	}
	first := 0
	for _, s := range sections {
		switch {
		case s.Type != SectionType:
			fail(s.Line, fmt.Errorf("config %s is unknown: want config %s", s.Type, SectionType))
			continue
		case first != 0:
			fail(s.Line, fmt.Errorf("config %s was already given in line %d", s.Type, first))
			continue
		}
		first = s.Line
		for _, o := range s.Options {
			if o.Value == "" || slices.Contains(initOptions, o.Name) {
				continue
			}
			entries = append(entries, settings.Entry{Key: strings.ReplaceAll(o.Name, "_", "-"), Value: o.Value, Line: o.Line})
		}
	}
	return entries, errors.Join(errs...)
}

// isUCI tells the two formats apart by the first statement: "config cloudrest" is no
// "key = value".
func isUCI(text []byte) bool {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		word, rest, _ := bytes.Cut(bytes.ReplaceAll(line, []byte("\t"), []byte(" ")), []byte(" "))
		return (string(word) == "config" || string(word) == "package") && !bytes.HasPrefix(bytes.TrimSpace(rest), []byte("="))
	}
	return false
}
