package settings

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	helpWidth  = 92 // columns
	helpIndent = 8  // of the text below a flag
)

// help is the text of the whole program.
func (a *App) help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n\nUsage: %s COMMAND [--flag value ...]\n", a.Name, a.Summary, a.Name)
	a.listCommands(&b)
	b.WriteString("\nExamples:\n")
	for _, c := range a.Commands {
		if len(c.Samples) > 0 && !c.Hidden {
			samples(&b, c.Samples[:1])
		}
	}
	fmt.Fprintf(&b, "\n%s COMMAND --help tells more about one command.\n", a.Name)
	return b.String()
}

func (a *App) listCommands(b *strings.Builder) {
	b.WriteString("\nCommands:\n")
	width := 0
	for _, c := range a.Commands {
		if !c.Hidden {
			width = max(width, len(strings.TrimSpace(c.Name+" "+c.Args)))
		}
	}
	for i, c := range a.Commands {
		if c.Hidden {
			continue
		}
		summary := c.Summary
		if i == 0 && !a.NoDefault {
			summary += " (default)"
		}
		fmt.Fprintf(b, "  %-*s  %s\n", width, strings.TrimSpace(c.Name+" "+c.Args), summary)
	}
}

// commandHelp is the text of one command; that of the default one lists the others too.
func (a *App) commandHelp(c *Command, s *Set) string {
	var b strings.Builder
	isDefault := !a.NoDefault && c == a.Commands[0]
	if isDefault {
		fmt.Fprintf(&b, "%s: %s\n\nUsage: %s [%s] [--flag value ...]", a.Name, a.Summary, a.Name, c.Name)
	} else {
		fmt.Fprintf(&b, "%s %s: %s\n\nUsage: %s %s", a.Name, c.Name, c.Summary, a.Name, c.Name)
	}
	if c.Args != "" {
		b.WriteString(" " + c.Args)
	}
	if len(s.all) > 0 && !isDefault {
		b.WriteString(" [--flag value ...]")
	}
	b.WriteString("\n")
	if c.Long != "" {
		b.WriteString("\n" + wrap(c.Long, 0))
	}
	if isDefault && len(a.Commands) > 1 {
		a.listCommands(&b)
	}
	if len(c.Samples) > 0 {
		b.WriteString("\nExamples:\n")
		samples(&b, c.Samples)
	}
	group := ""
	for i, st := range s.all {
		if st.group != group || i == 0 {
			group = st.group
			title := group
			if title == "" {
				title = "Settings"
			}
			fmt.Fprintf(&b, "\n%s:\n", title)
		}
		b.WriteString(st.help())
	}
	if len(s.all) > 0 {
		b.WriteString("\nWhere settings come from:\n")
		b.WriteString("  --config FILE\n" + wrap("a file of \"key = value\" lines, keys named like the flags; # begins a comment [CLOUDREST_CONFIG]", helpIndent))
		b.WriteString(wrap("A flag counts before its environment variable [in brackets], that before the file, that before the default.", 2))
	}
	return b.String()
}

func (st *setting) help() string {
	var b strings.Builder
	b.WriteString("  ")
	if st.letter != 0 {
		fmt.Fprintf(&b, "-%c, ", st.letter)
	}
	b.WriteString("--" + st.name)
	what := st.what
	if st.orOff {
		what += "|" + off
	}
	b.WriteString(" " + what + "\n")
	text := st.usage
	if st.initial != "" {
		text += fmt.Sprintf("; default %s", st.masked(st.initial))
	}
	if st.example != "" && st.example != st.initial {
		text += fmt.Sprintf("; for example %s", st.example)
	}
	b.WriteString(wrap(text+" ["+EnvName(st.name)+"]", helpIndent))
	return b.String()
}

func samples(b *strings.Builder, list []Sample) {
	for _, x := range list {
		fmt.Fprintf(b, "  # %s\n  %s\n", x.Says, x.Line)
	}
}

// wrap breaks text into indented lines; words are never broken.
func wrap(text string, indent int) string {
	var b strings.Builder
	for par := range strings.SplitSeq(text, "\n") {
		column := 0
		for word := range strings.FieldsSeq(par) {
			n := utf8.RuneCountInString(word)
			switch {
			case column == 0:
				b.WriteString(strings.Repeat(" ", indent))
				column = indent
			case column+1+n > helpWidth:
				b.WriteString("\n" + strings.Repeat(" ", indent))
				column = indent
			default:
				b.WriteByte(' ')
				column++
			}
			b.WriteString(word)
			column += n
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Example is a configuration file with every setting of a command, its help as a comment
// and its default (or example) as its value; settings with neither, and secrets, are
// commented out. It parses.
func (a *App) Example(c *Command) ([]byte, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s: %s\n# Every line below shows a default; remove what you do not change.\n", a.Name, strings.ReplaceAll(a.Summary, "\n", " "))
	group := ""
	for i, st := range declare(c).all {
		if st.group != group || i == 0 {
			group = st.group
			if group != "" {
				fmt.Fprintf(&b, "\n## %s\n", group)
			}
		}
		comment := wrap(st.usage+" ("+st.what+")", 0)
		b.WriteString("\n")
		for line := range strings.Lines(comment) {
			b.WriteString("# " + line)
		}
		value, prefix := st.initial, ""
		if value == "" || st.secret {
			value, prefix = st.example, "# "
		}
		line, err := printLine(Entry{Key: st.name, Value: value})
		if err != nil {
			return nil, err
		}
		b.WriteString(prefix + line + "\n")
	}
	return []byte(b.String()), nil
}
