package settings

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/cloudrest/cloudrest/tether/buildinfo"
)

// What every program of the project has in common.

// Log is how a daemon logs, to standard error.
type Log struct{ Level, Format string }

// Declare adds log-level (debug, info, warn, error) and log-format (text, json).
func (l *Log) Declare(s *Set) {
	l.Level, l.Format = "info", "text"
	s.Enum(&l.Level, "log-level", []string{"debug", "info", "warn", "error"}, "what to log, to standard error")
	s.Enum(&l.Format, "log-format", []string{"text", "json"}, "how to log")
}

// Logger makes the logger that l describes.
func (l Log) Logger(w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(strings.ToUpper(l.Level))); err != nil {
		panic("settings: " + err.Error()) // the setting takes only known words
	}
	o := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// ExampleCommand prints a configuration file for one command of app.
func ExampleCommand(app *App, of *Command) *Command {
	return &Command{
		Name: "example-config", Summary: "print a configuration file with every setting and its default",
		Run: func(_ context.Context, _ *Parsed, out io.Writer) error {
			text, err := app.Example(of)
			if err != nil {
				return err
			}
			_, err = out.Write(text)
			return err
		},
	}
}

// VersionCommand tells which build this is, and what it was built with.
func VersionCommand(program string, features ...string) *Command {
	var asJSON bool
	return &Command{
		Name: "version", Summary: "tell which build this is",
		Declare: func(s *Set) { s.Switch(&asJSON, "json", "print it as JSON") },
		Run: func(_ context.Context, _ *Parsed, out io.Writer) error {
			text := buildinfo.String(program, features...)
			if asJSON {
				text = string(buildinfo.JSON(features...))
			}
			_, err := fmt.Fprintln(out, text)
			return err
		},
	}
}

// WithSources adds to each mistake that a Validate has joined where its value came from.
// key tells the setting that a mistake is about, if it is about one.
func (s *Set) WithSources(err error, key func(error) (string, bool)) error {
	list := []error{err}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		list = append(list[:0], j.Unwrap()...)
	}
	for i, e := range list {
		if k, ok := key(e); ok {
			list[i] = fmt.Errorf("%s: %w", s.Source(k), e)
		}
	}
	return errors.Join(list...)
}
