package settings

import (
	"fmt"
	"strings"
)

// EnvPrefix begins the name of every environment variable that is read.
const EnvPrefix = "CLOUDREST_"

// EnvName is the environment variable of a setting: "state-dir" is CLOUDREST_STATE_DIR.
func EnvName(name string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// Set holds the settings of one command, in the order of their declaration. Declaring
// one name twice, or a name that is not lower-case letters, digits and hyphens, panics:
// that is a bug of the program. A Set is not safe for concurrent use.
type Set struct {
	all    []*setting
	byName map[string]*setting
	short  map[byte]*setting
	group  string
}

// setting is one declared setting.
type setting struct {
	name, group, usage string

	what    string // the placeholder in help: URL, FILE, on|off
	want    string // what would be right, for errors
	example string // a good value, for errors and the example file
	initial string // the default as text, as it was at declaration
	letter  byte   // short flag, 0: none
	secret  bool
	list    bool
	bare    bool // a flag without a value means "on"
	greedy  bool // a bare flag that takes a following argument as its value
	orOff   bool // "off" means empty
	need    bool // must be given

	set   func(text string) error // one value; a list adds to what it has
	show  func() string           // the present value as text
	clear func()                  // makes it empty

	source string // of the present value; "" for the default
}

// Option refines one declaration.
type Option func(*setting)

// Secret hides the value in errors and in everything printed.
func Secret() Option { return func(s *setting) { s.secret = true } }

// Short adds a flag of one letter.
func Short(letter byte) Option { return func(s *setting) { s.letter = letter } }

// Example gives a good value; it is told in errors and stands in the example file.
func Example(value string) Option { return func(s *setting) { s.example = value } }

// OrOff lets the word "off" (and an empty value) mean the empty value: not used.
func OrOff() Option { return func(s *setting) { s.orOff = true } }

// Required makes it an error to give no value in any place.
func Required() Option { return func(s *setting) { s.need = true } }

// What replaces the placeholder that help shows after the flag, such as "URL".
func What(placeholder string) Option { return func(s *setting) { s.what = placeholder } }

// Group puts the settings declared from here on under a title in the help.
func (s *Set) Group(title string) { s.group = title }

// Source says where the present value of a setting came from: "default", "--name",
// "CLOUDREST_NAME" or "file:line". It is for errors found later, such as those of a
// Config's Validate.
func (s *Set) Source(name string) string {
	if st := s.byName[name]; st != nil && st.source != "" {
		return st.source
	}
	return "default"
}

// Values lists the present values in the order of declaration, secrets hidden. The
// example file and a log line at start can be made from it.
func (s *Set) Values() []Entry {
	var out []Entry
	for _, st := range s.all {
		out = append(out, Entry{Key: st.name, Value: st.masked(st.shown())})
	}
	return out
}

func (s *Set) add(st *setting, opts []Option) {
	for _, o := range opts {
		o(st)
	}
	st.group = s.group
	if !validName(st.name) || st.name == "config" || st.name == "help" {
		panic(fmt.Sprintf("settings: bad name %q", st.name))
	}
	if s.byName[st.name] != nil || st.letter != 0 && s.short[st.letter] != nil {
		panic(fmt.Sprintf("settings: %q is declared twice", st.name))
	}
	if s.byName == nil {
		s.byName, s.short = map[string]*setting{}, map[byte]*setting{}
	}
	st.initial = st.shown()
	s.all = append(s.all, st)
	s.byName[st.name] = st
	if st.letter != 0 {
		s.short[st.letter] = st
	}
}

func (st *setting) shown() string {
	v := st.show()
	if v == "" && st.orOff {
		return off
	}
	return v
}

func (st *setting) masked(value string) string {
	if st.secret && value != "" {
		return "(hidden)"
	}
	return value
}

const off = "off"

// give sets a value that one source holds; what a lower source gave to a list is forgotten.
func (st *setting) give(source string, value string) error {
	if st.list && st.source != source {
		st.clear()
	}
	st.source = source
	if st.orOff && (value == "" || value == off) {
		st.clear()
		return nil
	}
	if err := st.set(value); err != nil {
		return &ValueError{Name: st.name, Source: source, Value: st.masked(value), Want: st.wanted(), Err: st.hide(err)}
	}
	return nil
}

// hide keeps the text of an error from telling a secret.
func (st *setting) hide(err error) error {
	if st.secret {
		return nil
	}
	return err
}

func (st *setting) wanted() string {
	w := st.want
	if st.example != "" {
		w += ", such as " + st.example
	}
	if st.orOff {
		w += ", or off"
	}
	return w
}

// ValueError is a value that a setting does not take.
type ValueError struct {
	Name   string
	Source string // "--name", "CLOUDREST_NAME" or "file:line"
	Value  string // masked if it is a secret
	Want   string // what would be right
	Err    error  // what is wrong, if more can be said
}

func (e *ValueError) Error() string {
	text := fmt.Sprintf("%s: %s: %q is not right: want %s", e.Source, e.Name, clip(e.Value, 120), e.Want)
	if e.Source == "--"+e.Name {
		text = fmt.Sprintf("%s: %q is not right: want %s", e.Source, clip(e.Value, 120), e.Want)
	}
	if e.Err != nil && e.Err != errPlain {
		text += " (" + e.Err.Error() + ")"
	}
	return text
}

func (e *ValueError) Unwrap() error { return e.Err }

// UnknownError is a name that no setting has.
type UnknownError struct {
	Name    string
	Source  string // where it stood
	Suggest string // the nearest known name; empty if none is near
}

func (e *UnknownError) Error() string {
	text := fmt.Sprintf("%s: unknown setting %q", e.Source, clip(e.Name, 60))
	if strings.HasPrefix(e.Source, "-") {
		text = fmt.Sprintf("unknown flag %s", e.Source)
	}
	if e.Suggest != "" {
		text += fmt.Sprintf(", did you mean %q?", e.Suggest)
	}
	return text
}

// UsageError is a mistake in the command line that belongs to no one value.
type UsageError struct{ Text string }

func (e *UsageError) Error() string { return e.Text }

// nearest finds the known name that a person most likely meant, "" if none is near.
func nearest(name string, known []string) string {
	best, found := max(1, min(3, len(name)/3))+1, ""
	for _, k := range known {
		d := distance(name, k)
		if d < best {
			best, found = d, k
		}
	}
	if found == "" && len(name) >= 3 {
		for _, k := range known {
			if strings.HasPrefix(k, name) || strings.HasPrefix(name, k) {
				return k
			}
		}
	}
	return found
}

// distance is the number of inserted, removed, changed and swapped characters between
// two names (restricted edit distance).
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return len(a) + len(b)
	}
	var before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next := make([]int, len(b)+1)
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(row[j]+1, next[j-1]+1, row[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}
