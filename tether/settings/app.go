package settings

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// App is a program with its commands.
type App struct {
	Name    string // as typed, such as cloudrestd
	Summary string // one or two sentences
	// Commands in the order of the help. The first is the default if NoDefault is false.
	Commands  []*Command
	NoDefault bool
	// ReadConfig reads the text of the configuration file; nil: ParseFile, whose contract it
	// keeps. A system with its own format, such as OpenWrt's UCI, comes in here.
	ReadConfig func(name string, text []byte) ([]Entry, error)
}

// Command is one thing a program does.
type Command struct {
	Name    string
	Summary string   // one line
	Long    string   // further text of the help, optional
	Args    string   // arguments as help shows them, such as "DEVICE PATH"; empty: none
	MinArgs int      // how many are needed
	MaxArgs int      // how many are taken; -1: any number
	Samples []Sample // examples
	// Declare declares the settings; nil: none. It is called more than once, before any value
	// is set, so it may fill in the defaults but must not do anything else.
	Declare func(*Set)
	// Run does the work; out is for results. Its error is printed and makes the exit code 1,
	// or Code of an *ExitError.
	Run func(ctx context.Context, in *Parsed, out io.Writer) error
	// Hidden keeps the command out of the list of commands.
	Hidden bool
}

// Sample is one example in the help.
type Sample struct{ Says, Line string }

// Parsed is what a command line, environment and file said.
type Parsed struct {
	Command  *Command
	Args     []string
	Set      *Set
	Help     string   // not empty: help was asked for, print this and do nothing else
	Warnings []string // such as unknown environment variables
}

// ExitError lets a command choose its exit code. A nil Err prints nothing.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit %d", e.Code)
	}
	return e.Err.Error()
}

func (e *ExitError) Unwrap() error { return e.Err }

// Exit codes of Main.
const (
	ExitOK    = 0
	ExitFail  = 1 // the command's Run returned an error
	ExitUsage = 2 // the settings are wrong
)

// Main parses, runs the command and returns the exit code. Help goes to out; errors and
// warnings go to errOut, one per line.
func (a *App) Main(ctx context.Context, args, environ []string, out, errOut io.Writer) int {
	p, err := a.Parse(args, environ)
	if err != nil {
		fmt.Fprintf(errOut, "%s: %s\n", a.Name, strings.ReplaceAll(err.Error(), "\n", "\n"+a.Name+": "))
		fmt.Fprintf(errOut, "%s: see %s --help\n", a.Name, strings.TrimSpace(a.Name+" "+a.named(p)))
		return ExitUsage
	}
	if p.Help != "" {
		io.WriteString(out, p.Help)
		return ExitOK
	}
	for _, w := range p.Warnings {
		fmt.Fprintf(errOut, "%s: %s\n", a.Name, w)
	}
	if err := p.Command.Run(ctx, p, out); err != nil {
		code := ExitFail
		if ee := new(ExitError); errors.As(err, &ee) {
			code, err = ee.Code, ee.Err
		}
		if err != nil {
			fmt.Fprintf(errOut, "%s: %s\n", a.Name, strings.ReplaceAll(err.Error(), "\n", "\n"+a.Name+": "))
		}
		return code
	}
	return ExitOK
}

// named is the name of the command for a hint, empty for the default one.
func (a *App) named(p *Parsed) string {
	if p == nil || p.Command == nil || !a.NoDefault && p.Command == a.Commands[0] {
		return ""
	}
	return p.Command.Name
}

// Parse reads args (without the program name) and environ ("NAME=value"). The error joins
// everything that is wrong: *UsageError, *UnknownError, *ValueError, *FileError. Parsed is
// not nil even then, so that a caller can see which command was meant.
func (a *App) Parse(args, environ []string) (*Parsed, error) {
	cmd, args, help, err := a.choose(args)
	p := &Parsed{Command: cmd}
	if err != nil {
		return p, err
	}
	if cmd == nil {
		p.Help = a.help()
		return p, nil
	}
	p.Set = declare(cmd)
	if help {
		p.Help = a.commandHelp(cmd, p.Set)
		return p, nil
	}

	f := scan(p.Set, args)
	if f.help {
		p.Help = a.commandHelp(cmd, p.Set)
		return p, nil
	}
	p.Args = f.args
	errs := f.errs
	known := a.known()
	env, warnings := readEnv(environ, known)
	p.Warnings = warnings

	file := f.config
	if file == "" {
		file = env["config"]
	}
	if file != "" {
		errs = append(errs, a.applyFile(p.Set, file, known)...)
	}
	for _, st := range p.Set.all {
		if v, ok := env[st.name]; ok {
			if err := st.give(EnvName(st.name), v); err != nil {
				errs = append(errs, err)
			}
		}
	}
	for _, g := range f.given {
		if err := g.st.give("--"+g.st.name, g.value); err != nil {
			errs = append(errs, err)
		}
	}
	for _, st := range p.Set.all {
		if st.need && st.source == "" {
			errs = append(errs, &UsageError{fmt.Sprintf("--%s is needed: want %s", st.name, st.wanted())})
		}
	}
	errs = append(errs, a.checkArgs(cmd, p.Args)...)
	return p, errors.Join(errs...)
}

// choose finds the command; nil without an error means that the help of the program is wanted.
func (a *App) choose(args []string) (cmd *Command, rest []string, help bool, err error) {
	if len(args) > 0 && args[0] == "--version" && a.find("version") != nil {
		return a.find("version"), args[1:], false, nil
	}
	if len(args) == 0 && a.NoDefault || len(args) == 1 && (args[0] == "help" || args[0] == "--help" || args[0] == "-h") {
		if !a.NoDefault && len(args) == 1 {
			return a.Commands[0], nil, true, nil
		}
		return nil, nil, true, nil
	}
	if len(args) == 0 || strings.HasPrefix(args[0], "-") && !a.NoDefault {
		return a.Commands[0], args, false, nil
	}
	if args[0] == "help" {
		help, args = true, args[1:]
	}
	if cmd = a.find(args[0]); cmd != nil {
		return cmd, args[1:], help, nil
	}
	if strings.HasPrefix(args[0], "-") {
		return nil, nil, false, &UsageError{fmt.Sprintf("the command comes first, before %s", clip(args[0], 60))}
	}
	if !a.NoDefault && a.Commands[0].MaxArgs != 0 {
		return a.Commands[0], args, help, nil
	}
	var names []string
	for _, c := range a.Commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	text := fmt.Sprintf("unknown command %q", clip(args[0], 60))
	if near := nearest(args[0], names); near != "" {
		text += fmt.Sprintf(", did you mean %q?", near)
	} else {
		text += ": there are " + strings.Join(names, ", ")
	}
	return nil, nil, false, &UsageError{text}
}

func (a *App) find(name string) *Command {
	for _, c := range a.Commands {
		if c.Name == name {
			return c
		}
	}
	return nil
}

func declare(c *Command) *Set {
	s := &Set{}
	if c.Declare != nil {
		c.Declare(s)
	}
	return s
}

// known lists the settings of all commands: one file and one environment serve them all.
// The commands' own variables keep the values they had.
func (a *App) known() []string {
	var names []string
	for _, c := range a.Commands {
		for _, st := range declare(c).all {
			if !slices.Contains(names, st.name) {
				names = append(names, st.name)
			}
		}
	}
	return names
}

func (a *App) checkArgs(cmd *Command, args []string) []error {
	switch {
	case cmd.MaxArgs >= 0 && len(args) > cmd.MaxArgs:
		extra := args[cmd.MaxArgs]
		if a.find(extra) != nil {
			return []error{&UsageError{fmt.Sprintf("the command %s must come first, before the flags", extra)}}
		}
		return []error{&UsageError{fmt.Sprintf("%q is too much: %s takes %s", clip(extra, 60), cmd.Name, argsInWords(cmd))}}
	case len(args) < cmd.MinArgs:
		return []error{&UsageError{fmt.Sprintf("%s needs %s", cmd.Name, argsInWords(cmd))}}
	}
	return nil
}

func argsInWords(c *Command) string {
	if c.Args == "" {
		return "no arguments, only flags"
	}
	return c.Args
}

// flags is what the command line said, in its order.
type flags struct {
	given  []given
	args   []string
	config string
	help   bool
	errs   []error
}

type given struct {
	st    *setting
	value string
}

// scan reads flags and arguments, which may be mixed; "--" ends the flags. A flag given
// again replaces the earlier value, so that a wrapper can be overridden; lists grow.
func scan(s *Set, args []string) (f flags) {
	names := []string{"config", "help"}
	for _, st := range s.all {
		names = append(names, st.name)
	}
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			f.args = append(f.args, args[i+1:]...)
			break
		}
		if arg == "-h" || arg == "--help" {
			f.help = true
			continue
		}
		if len(arg) < 2 || arg[0] != '-' { // "-" alone is an argument: standard input
			f.args = append(f.args, arg)
			continue
		}
		name, value, hasValue := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		var st *setting
		if strings.HasPrefix(arg, "--") {
			st = s.byName[name]
		} else if st = s.short[arg[1]]; st != nil {
			name, value, hasValue = st.name, strings.TrimPrefix(arg[2:], "="), len(arg) > 2
		} else {
			name = strings.TrimPrefix(name, "-")
			f.errs = append(f.errs, &UnknownError{Name: name, Source: "-" + name, Suggest: dashes(nearest(name, names))})
			f.skipValue(args, &i, hasValue)
			continue
		}
		if st == nil && name != "config" {
			f.errs = append(f.errs, &UnknownError{Name: name, Source: "--" + name, Suggest: dashes(nearest(name, names))})
			f.skipValue(args, &i, hasValue)
			continue
		}
		if !hasValue {
			switch {
			case st != nil && st.bare && !st.greedy:
				value = "on"
			case st != nil && st.bare:
				value = "on"
				if i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
					i++
					value = args[i] // if it is neither on nor off, that is what the user should hear
				}
			case i+1 >= len(args) || strings.HasPrefix(args[i+1], "--"):
				want := "a path"
				if st != nil {
					want = st.wanted()
				}
				f.errs = append(f.errs, &UsageError{fmt.Sprintf("--%s has no value: want %s", name, want)})
				continue
			default:
				i++
				value = args[i]
			}
		}
		if st == nil {
			f.config = value
			continue
		}
		f.given = append(f.given, given{st, value})
	}
	// For anything but a list only the last value counts.
	last := map[*setting]int{}
	for i, g := range f.given {
		last[g.st] = i
	}
	kept := f.given[:0]
	for i, g := range f.given {
		if g.st.list || last[g.st] == i {
			kept = append(kept, g)
		}
	}
	f.given = kept
	return f
}

// skipValue steps over what was most likely the value of an unknown flag, so that one
// mistake gives one message.
func (f *flags) skipValue(args []string, i *int, hasValue bool) {
	if !hasValue && *i+1 < len(args) && !strings.HasPrefix(args[*i+1], "-") {
		*i++
	}
}

func dashes(name string) string {
	if name == "" {
		return ""
	}
	return "--" + name
}

// readEnv picks our variables out of the environment. An empty one counts as not set. An
// unknown one is a warning only: the environment is shared with other programs.
func readEnv(environ []string, known []string) (values map[string]string, warnings []string) {
	values = map[string]string{}
	var names []string
	byEnv := map[string]string{EnvName("config"): "config"}
	for _, k := range known {
		byEnv[EnvName(k)] = k
		names = append(names, EnvName(k))
	}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, EnvPrefix) || value == "" {
			continue
		}
		key, ok := byEnv[name]
		if !ok {
			w := (&UnknownError{Name: name, Source: "environment", Suggest: nearest(name, names)}).Error()
			warnings = append(warnings, w+" (ignored)")
			continue
		}
		values[key] = value
	}
	slices.Sort(warnings)
	return values, warnings
}

// applyFile sets what the configuration file says.
func (a *App) applyFile(s *Set, name string, known []string) (errs []error) {
	text, err := readFile(name)
	if err != nil {
		return []error{fmt.Errorf("read the configuration: %w", err)}
	}
	read := a.ReadConfig
	if read == nil {
		read = ParseFile
	}
	entries, err := read(name, text)
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		errs = append(errs, j.Unwrap()...)
	} else if err != nil {
		errs = append(errs, err)
	}
	seen := map[string]int{}
	for _, e := range entries {
		source := fmt.Sprintf("%s:%d", name, e.Line)
		if !slices.Contains(known, e.Key) {
			errs = append(errs, &UnknownError{Name: e.Key, Source: source, Suggest: nearest(e.Key, known)})
			continue
		}
		st := s.byName[e.Key]
		if st == nil {
			continue // belongs to another command
		}
		if at := seen[e.Key]; at != 0 && !st.list {
			errs = append(errs, &FileError{name, e.Line, fmt.Errorf("%s was already given in line %d", e.Key, at)})
			continue
		}
		if seen[e.Key] != 0 {
			source = st.source // the list goes on; its source is its first line
		}
		seen[e.Key] = e.Line
		if err := st.give(source, e.Value); err != nil {
			if ve := new(ValueError); errors.As(err, &ve) {
				ve.Source = fmt.Sprintf("%s:%d", name, e.Line)
			}
			errs = append(errs, err)
		}
	}
	return errs
}

// readFile reads a configuration file of at most MaxFile bytes (one more, so that
// ParseFile sees that it is too large).
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxFile+1))
}
