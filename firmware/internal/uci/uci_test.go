package uci

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tether/settings"
)

func TestParse(t *testing.T) {
	opt := func(line int, name, value string) Option { return Option{Name: name, Value: value, Line: line} }
	one := func(o ...Option) []Section { return []Section{{Type: "cloudrest", Name: "main", Line: 1, Options: o}} }
	const head = "config cloudrest 'main'\n"
	for _, tc := range []struct {
		name, text string
		want       []Section
		errs       []string
	}{
		{name: "empty"},
		{name: "only comments", text: "# a\n\n  # b"},
		{name: "anonymous section", text: "config cloudrest", want: []Section{{Type: "cloudrest", Line: 1}}},
		{name: "package line", text: "package cloudrest\n\n" + head, want: []Section{{Type: "cloudrest", Name: "main", Line: 3}}},
		{name: "three ways to quote", text: head + "\toption a 'x y'\n\toption b \"x y\"\n\toption c x\\ y\n",
			want: one(opt(2, "a", "x y"), opt(3, "b", "x y"), opt(4, "c", "x y"))},
		{name: "pieces of one word", text: head + `option a 'it'\''s '"\"here\""`, want: one(opt(2, "a", `it's "here"`))},
		{name: "backslash in single quotes is itself", text: head + `option a 'x\n'`, want: one(opt(2, "a", `x\n`))},
		{name: "empty value", text: head + `option a ''`, want: one(opt(2, "a", ""))},
		{name: "comment after a value", text: head + "option a x # y\noption b '#x'", want: one(opt(2, "a", "x"), opt(3, "b", "#x"))},
		{name: "semicolon", text: "config cloudrest main; option a x;option b y\n", want: one(opt(1, "a", "x"), opt(1, "b", "y"))},
		{name: "quote over a line end", text: head + "option a 'x\ny'\noption b z", want: one(opt(2, "a", "x\ny"), opt(4, "b", "z"))},
		{name: "line that goes on", text: head + "option a \\\n x", want: one(opt(2, "a", "x"))},
		{name: "line ends of Windows", text: "config cloudrest main\r\noption a x\r\n", want: one(opt(2, "a", "x"))},
		{name: "list", text: head + "list r a\nlist r b", want: one(Option{"r", "a", true, 2}, Option{"r", "b", true, 3})},
		{name: "quote not closed", text: head + "option a 'x\noption b y\n", want: one(opt(3, "b", "y")), errs: []string{"f:2: a quote is not closed"}},
		{name: "value missing", text: head + "option a\noption b x y", want: one(), errs: []string{"f:2: option takes", "f:3: option takes"}},
		{name: "before the section", text: "option a x", errs: []string{"f:1: option a stands before"}},
		{name: "hyphen in a name", text: head + "option state-dir x", want: one(), errs: []string{`f:2: "state-dir" is not a name`}},
		{name: "no statement", text: "https = :443", errs: []string{`"https = :443" is no statement`}},
		{name: "too large", text: strings.Repeat("#", settings.MaxFile+1), errs: []string{"at most 1048576"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse("f", []byte(tc.text))
			if !reflect.DeepEqual(got, tc.want) && len(got)+len(tc.want) > 0 {
				t.Errorf("sections = %+v, want %+v", got, tc.want)
			}
			checkErrors(t, err, tc.errs)
		})
	}
}

func checkErrors(t *testing.T, err error, want []string) {
	t.Helper()
	lines := strings.Split(fmt.Sprint(err), "\n")
	if err == nil {
		lines = nil
	}
	if len(lines) != len(want) {
		t.Fatalf("errors = %q, want %q", lines, want)
	}
	for i, w := range want {
		if !strings.Contains(lines[i], w) {
			t.Errorf("error %d = %q, want it to contain %q", i, lines[i], w)
		}
	}
	if _, ok := errors.AsType[*settings.FileError](err); !ok && err != nil {
		t.Errorf("error is %T, want a *settings.FileError", err)
	}
}

func TestEntries(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       []settings.Entry
		errs       []string
	}{
		{name: "names and lists", text: "config cloudrest 'main'\n option enabled '1'\n option state_dir '/etc/cloudrest'\n list relay 'a'\n list relay 'b'\n option name ''\n option gogc 50\n",
			want: []settings.Entry{{Key: "state-dir", Value: "/etc/cloudrest", Line: 3}, {Key: "relay", Value: "a", Line: 4}, {Key: "relay", Value: "b", Line: 5}}},
		{name: "the other format", text: "# c\nhttps = :443\n", want: []settings.Entry{{Key: "https", Value: ":443", Line: 2}}},
		{name: "a key named config", text: "config = x\n", want: []settings.Entry{{Key: "config", Value: "x", Line: 1}}},
		{name: "another section", text: "config cloudrset\n option a b\n", errs: []string{"f:1: config cloudrset is unknown"}},
		{name: "two sections", text: "config cloudrest\nconfig cloudrest\n option a b\n", errs: []string{"f:2: config cloudrest was already given in line 1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Entries("f", []byte(tc.text))
			if !reflect.DeepEqual(got, tc.want) && len(got)+len(tc.want) > 0 {
				t.Errorf("entries = %+v, want %+v", got, tc.want)
			}
			checkErrors(t, err, tc.errs)
		})
	}
}

// FuzzParse checks that no text makes the parser fail badly, that every name it gives is
// one, and that what it read survives being written in single quotes and read again.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "config a 'b'\n\toption c 'd'\n\tlist e \"f\\\"g\"\n", "config a;option b c#d\n", "option", "config a\noption b 'c", "config a\noption b \\\n c\\"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		first, err := Parse("f", text)
		var b strings.Builder
		for _, s := range first {
			if !validName(s.Type) || s.Line < 1 {
				t.Fatalf("section %+v", s)
			}
			fmt.Fprintf(&b, "config %s %s\n", s.Type, s.Name)
			for _, o := range s.Options {
				verb := "option"
				if o.List {
					verb = "list"
				}
				fmt.Fprintf(&b, "%s %s '%s'\n", verb, o.Name, strings.ReplaceAll(o.Value, "'", `'\''`))
			}
		}
		if err != nil || b.Len() > settings.MaxFile {
			return
		}
		second, err := Parse("f", []byte(b.String()))
		if err != nil || fmt.Sprint(blank(first)) != fmt.Sprint(blank(second)) {
			t.Fatalf("read again: %+v, %v; want %+v", second, err, first)
		}
	})
}

// blank takes the line numbers away.
func blank(in []Section) []Section {
	for i := range in {
		in[i].Line = 0
		for j := range in[i].Options {
			in[i].Options[j].Line = 0
		}
	}
	return in
}
