// Package settings turns one declaration into a flag, an environment variable and a
// key of the configuration file, so that a program cannot forget one of the three.
// Precedence is flag, environment, file, default. Everything wrong in any of them is
// reported at once, with its name, where it stood and what would be right.
//
//	var origin *url.URL                       // its value now is the default
//	set.URL(&origin, "origin", "http,unix", "where the REST service listens")
//
// declares --origin, CLOUDREST_ORIGIN and "origin = ..." in the file. A program with
// several commands is an App; its help is generated. The package reads the arguments
// and environment it is handed and one file; it knows nothing of what the settings mean.
//
// # The file
//
// UTF-8 text, one "key = value" per line; spaces around both do not count. A line that
// begins with # is a comment, and so is the rest of a line from a # that follows a
// space. A value may stand in double quotes, and must if it is empty, begins or ends
// with a space, or holds a quote or " #"; inside quotes \" \\ \n \r \t are understood
// and nothing else. A key may be repeated only if it takes a list; a list may also be
// written in one line with commas. Unknown keys are errors.
package settings
